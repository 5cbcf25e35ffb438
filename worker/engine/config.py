"""What the engine process is told: which model, where, how large."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Arguments of the engine process; None lets it choose.

    Attributes:
        engine: `paged` or `generate`.
        model_path: a folder or a hub id. revision: of the hub.
        dtype: auto, float32, float16, bfloat16. device: auto, cpu, cuda, cuda:1, ...
        num_gpus: devices that the model is spread over. gpus: CUDA_VISIBLE_DEVICES.
        tensor_parallel_size: processes that each hold a part of every layer.
        max_gpu_memory: a device's share for weights, such as `13GiB`.
        load_8bit: int8 weights. cpu_offloading: layers that do not fit stay in main memory.
        pooling: auto, mean, cls, last, max: how embeddings are made of the tokens' states.
        max_model_len: tokens; at most the model's own context length.
        max_batch_tokens: tokens computed in a step.
        kv_cache_gb: size of the KV pool in GiB.
        gpu_memory_share: of each GPU's memory, which weights, steps and KV pool may fill.
        enforce_eager: no CUDA graphs.
        overlap: on, off or auto: whether a step is launched before the one before has ended.
        max_running: sequences in the batch.
        native_kernels: whether to compile and use the engine's own CPU kernels.
        squeeze_weights: whether these may keep weights in a second form.
        prompt_lookup: on, off or auto: whether to draft tokens from what a text has repeated.
        seed: seeds the engine's own choices.
        stall_s: seconds without any progress after which the process is taken for hung.
        load_stall_s: the same while it loads, when reading, writing and computing are progress.
    """

    engine: str = "paged"
    model_path: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    num_gpus: int = 1
    tensor_parallel_size: int = 1
    gpus: str | None = None
    max_gpu_memory: str | None = None
    load_8bit: bool = False
    cpu_offloading: bool = False
    trust_remote_code: bool = False
    pooling: str = "auto"
    max_model_len: int | None = None
    max_batch_tokens: int | None = None
    kv_cache_gb: float | None = None
    gpu_memory_share: float = 0.9
    enforce_eager: bool = False
    overlap: str = "auto"
    max_running: int | None = None
    native_kernels: bool = True
    squeeze_weights: bool = True
    prompt_lookup: str = "auto"
    seed: int | None = None
    stall_s: float = 10.0
    load_stall_s: float = 120.0
