"""Builds an engine's core from a loaded model: paged where that is proven right, else generate."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeAlias

import torch

from worker.engine.blocks import BlockPool
from worker.engine.config import EngineConfig
from worker.engine.engine import EngineCore
from worker.engine.faults import EngineBroken
from worker.engine.memory import free_memory
from worker.engine.protocol import EngineInfo, ModelLoadError
from worker.engine.ranks import Ranks
from worker.engine.watchdog import Beat
from worker.model.attention import PagedAttention, Span, UnsupportedAttention, supported_by_mask
from worker.model.attention_choice import GATHER_BLOCK_SIZE, choose_backend
from worker.model.attention_gather import GatherAttention
from worker.model.attention_native import NativeAttention
from worker.model.attention_varlen import VarlenAttention
from worker.model.border import within
from worker.model.encoder import BATCH_TOKENS_CPU, BATCH_TOKENS_GPU, Encoder
from worker.model.fused_layer import (
    FusedModel,
    LayerOps,
    NativeOps,
    TorchOps,
    all_layers_fused,
    fuse_layers,
    has_fused_layers,
)
from worker.model.generate import GenerateCore
from worker.model.graphs import CudaRecorder, DecodeGraphs
from worker.model.kernels import KERNEL_DTYPES, Kernels, KernelSet, load_kernels
from worker.model.kv_size import devices_of, num_blocks_for, rehearse
from worker.model.linear_cpu import OneDnnProducts, Products, can_pack, is_packed, pack_linears
from worker.model.linear_native import NativeProducts
from worker.model.loader import LoadedModel, load_model, pick_device
from worker.model.overlap import OverlapRunner
from worker.model.parallel import LeadRunner, join
from worker.model.pick_native import NativePick
from worker.model.pick_torch import TorchPick
from worker.model.runner import ModelRunner
from worker.model.sampler import Pick

log = logging.getLogger(__name__)

_PROBE_TOKENS: Final = 12
_LEAST_PREFILL_CPU: Final = 8
_LEAST_PREFILL_GPU: Final = 512  # fewer take as long: the weights are read once either way
_SMALL_BYTES: Final = 32 * 1024**2
_SQUEEZED_SHARE: Final = 0.25
"""Of the free memory, what a second form of the weights may take, from which few rows are computed
faster."""

Embed: TypeAlias = Callable[[list[Any]], list[list[float]]]


@dataclass(frozen=True, slots=True)
class Built:
    """A core that is ready to step, and what it says of itself.

    Attributes:
        embed: computes a batch of token ids, or of pairs where `info.scores`.
        embed_tokens: most padded tokens in such a batch.
    """

    core: EngineCore | GenerateCore
    embed: Embed
    info: EngineInfo
    embed_tokens: int = BATCH_TOKENS_CPU


def build(
    config: EngineConfig,
    report: Callable[[str], None],
    *,
    num_threads: int,
    ranks: Ranks | None = None,
    beat: Beat = lambda: None,
) -> Built:
    """Load the model and build its engine, on `num_threads` threads where it runs on the CPU.

    Args:
        ranks: the other processes of a tensor-parallel engine.
        beat: called once a layer of every forward.

    Raises:
        ModelLoadError: with a one-line reason.
    """
    torch.set_num_threads(num_threads)
    torch.set_float32_matmul_precision("highest")  # float32 stays float32 on GPUs too
    if config.seed is not None:
        torch.manual_seed(config.seed)
    if ranks is not None:
        join(pick_device(config), 0, ranks.size, ranks.listener)
    loaded = load_model(config, report)
    set_threads(loaded.model, num_threads)
    report("warming up")
    if config.engine == "paged" and loaded.kind == "causal":
        own = loaded.model.config._attn_implementation
        try:
            return build_paged(config, loaded, ranks, report, beat)
        except UnsupportedAttention as reason:
            if ranks is not None:
                raise ModelLoadError(
                    f"--tensor-parallel-size: the paged engine cannot run this model: {reason}"
                ) from reason
            changed = has_fused_layers(loaded.model) or is_packed(loaded.model)
            if config.native_kernels and changed:
                log.warning("the CPU kernels do not run this model (%s): going without", reason)
                plain = replace(config, native_kernels=False)
                return build(plain, report, num_threads=num_threads, beat=beat)
            log.warning("the paged engine cannot run this model (%s): using generate", reason)
            if changed:
                # other attention, and code of the model that reads a weight, need them as they were
                loaded = load_model(config, report)
            elif loaded.model.config._attn_implementation != own:
                loaded.model.set_attn_implementation(own)
    _beat_in_layers(loaded.model, beat)
    core = GenerateCore(loaded)
    if loaded.kind in ("encoder", "cross_encoder"):
        return _build_encoder(config, loaded, core)
    core.warm_up()
    embed = within(loaded.device, core.embed)
    return Built(core, embed, _info("generate", loaded, capacity=1))


def _beat_in_layers(model: torch.nn.Module, beat: Beat) -> None:
    """Have `beat` called at each layer of `model`: what it has in lists, whatever it is."""

    def note(_layer: torch.nn.Module, _inputs: tuple[Any, ...]) -> None:
        beat()

    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList):
            for layer in module:
                layer.register_forward_pre_hook(note)


def _build_encoder(config: EngineConfig, loaded: LoadedModel, core: GenerateCore) -> Built:
    encoder, scores = Encoder(loaded), loaded.kind == "cross_encoder"
    tokens = BATCH_TOKENS_CPU if loaded.device.type == "cpu" else BATCH_TOKENS_GPU
    info = replace(
        _info("encoder", loaded, capacity=1), generates=False, embeds=not scores, scores=scores
    )
    compute = encoder.score if scores else encoder.embed
    embed: Embed = within(loaded.device, compute)
    return Built(core, embed, info, embed_tokens=config.max_batch_tokens or tokens)


def set_threads(model: torch.nn.Module, num_threads: int) -> None:
    """Let torch run `model` on `num_threads` threads, or on one where it is small."""
    small = sum(weight.nbytes for weight in model.parameters()) < _SMALL_BYTES
    # waking a second thread takes longer than its half of the work
    torch.set_num_threads(1 if small else num_threads)


def paged_attention(
    loaded: LoadedModel, kernels: KernelSet | None = None, beat: Beat = lambda: None
) -> PagedAttention:
    """Paged attention for the device of a model; not installed yet."""
    if kernels is not None:
        return PagedAttention(NativeAttention(kernels, GATHER_BLOCK_SIZE), beat)
    backend = choose_backend(loaded.model.config, loaded.device, loaded.dtype)
    return PagedAttention(backend, beat)


def build_paged(
    config: EngineConfig,
    loaded: LoadedModel,
    ranks: Ranks | None,
    report: Callable[[str], None],
    beat: Beat = lambda: None,
) -> Built:
    """The paged engine of a loaded model.

    Raises:
        UnsupportedAttention: when the model does not run on it. ModelLoadError: too little memory.
    """
    on_cpu, on_cuda = loaded.device.type == "cpu", loaded.device.type == "cuda"
    overlap = ranks is None and (config.overlap == "on" or (config.overlap == "auto" and on_cuda))
    max_running = config.max_running or (64 if on_cpu else 256)
    max_batch_tokens = config.max_batch_tokens or (512 if on_cpu else 8192)
    alone_on_cpu = on_cpu and ranks is None
    native = alone_on_cpu and config.native_kernels
    kernels = load_kernels(report) if native and loaded.dtype in KERNEL_DTYPES else None
    attention = paged_attention(loaded, kernels, beat)
    pick: Pick = NativePick(kernels[loaded.dtype].library) if kernels else TorchPick
    runner = _runner(loaded, attention, ranks, pick, overlap=overlap)
    ops = None
    if alone_on_cpu and not config.load_8bit and can_pack():
        spare = _SQUEEZED_SHARE * free_memory() if config.squeeze_weights else 0
        ops = _layer_ops(kernels[loaded.dtype] if kernels else None, int(spare))
    own = loaded.model.config._attn_implementation
    try:
        _probe(loaded, attention, runner, ops)
    except UnsupportedAttention as reason:
        if ranks is not None or not isinstance(attention.backend, VarlenAttention):
            raise
        log.warning("flash attention does not run this model (%s): plain operations do", reason)
        loaded.model.set_attn_implementation(own)
        attention.backend, attention.layers = GatherAttention(GATHER_BLOCK_SIZE), {}
        _probe(loaded, attention, runner, ops)
    if ops is not None and isinstance(ops.products, NativeProducts) and ops.products.squeezed_bytes:
        squeezed = ops.products.squeezed_bytes / 1024**2
        log.info("weights stand in 12 bits too, for steps of few sequences: %.1f MiB", squeezed)
    if on_cuda and config.kv_cache_gb is None:
        rehearse(
            runner,
            attention.layers,
            max_batch_tokens=max_batch_tokens,
            max_running=max_running,
            context_length=loaded.context_length,
        )
    num_blocks = blocks_for(config, loaded, attention, max_running)
    if isinstance(runner, LeadRunner):
        num_blocks = runner.least(num_blocks, max_running)
    runner.allocate(num_blocks)
    block_size = attention.backend.block_size
    context = min(loaded.context_length, num_blocks * block_size)
    if context < loaded.context_length:
        log.warning("the KV pool holds %d tokens only: the context is cut to that", context)
    if isinstance(runner, OverlapRunner) and not config.enforce_eager:
        _add_graphs(runner, attention, max_running, context, report)
    core = EngineCore(
        runner,
        BlockPool(num_blocks, block_size),
        max_running=max_running,
        max_batch_tokens=max_batch_tokens,
        overlap=overlap,
        drafts=_drafts(config.prompt_lookup, loaded, runner, ops) and not overlap,
        least_prefill=_LEAST_PREFILL_CPU if on_cpu else _LEAST_PREFILL_GPU,
        vocab_size=loaded.vocab_size,
        eos_token_ids=loaded.eos_token_ids,
    )
    info = _info(
        "paged",
        loaded,
        capacity=max_running,
        context=context,
        kv_blocks=num_blocks,
        block_size=block_size,
    )
    embed = within(loaded.device, partial(runner.embed, pooling=loaded.pooling))
    return Built(core, embed, info)


def _drafts(wanted: str, loaded: LoadedModel, runner: ModelRunner, ops: LayerOps | None) -> bool:
    """Whether to draft: what a token gives must not depend on the tokens beside it.

    In the engine's own layers it does not by a bit, in float32 not by more than its rounding.
    Without `ops` nothing is known of that: quantized, or shared by several processes.
    """
    if loaded.device.type != "cpu":
        if wanted == "on":
            log.warning("--prompt-lookup on: there are drafts on a CPU only")
        return False
    is_exact = loaded.dtype == torch.float32 or runner.is_native
    return wanted == "on" or (wanted == "auto" and ops is not None and is_exact)


def _layer_ops(kernels: Kernels | None, spare_bytes: int) -> LayerOps:
    if kernels is None:
        return LayerOps(TorchOps(), OneDnnProducts())
    products: Products = OneDnnProducts()
    if kernels.products is not None:
        products = kernels.products.with_spare(spare_bytes)
    return LayerOps(NativeOps(kernels), products, kernels)


def _runner(
    loaded: LoadedModel,
    attention: PagedAttention,
    ranks: Ranks | None,
    pick: Pick,
    *,
    overlap: bool,
) -> ModelRunner:
    if ranks is not None:
        return LeadRunner(loaded.model, attention, loaded.device, ranks)
    if overlap or loaded.device.type == "cuda":
        return OverlapRunner(loaded.model, attention, loaded.device, pick)
    return ModelRunner(loaded.model, attention, loaded.device, pick)


def _add_graphs(
    runner: OverlapRunner,
    attention: PagedAttention,
    max_running: int,
    context: int,
    report: Callable[[str], None],
) -> None:
    """Record decode steps, where flash attention runs the model on one GPU."""
    backend, devices = attention.backend, devices_of(attention.layers)
    if not isinstance(backend, VarlenAttention) or len(devices) > 1:
        return
    backend.reserve_decode(max_running, context, devices[0])
    runner.graphs = DecodeGraphs(
        runner.forward_decode, backend, devices[0], max_running, CudaRecorder(devices[0])
    )
    runner.graphs.warm_up(report)


def _probe(
    loaded: LoadedModel, attention: PagedAttention, runner: ModelRunner, ops: LayerOps | None
) -> None:
    """Run a short text whole, in chunks and by a decode step: all must agree with transformers.

    With `ops` layers are fused and linear layers packed for the CPU between the two, so that this
    is part of what is compared. It also finds the shape of each layer's keys and values.

    Raises:
        UnsupportedAttention: when the model does not run on the paged attention, or wrongly.
    """
    if not supported_by_mask(loaded.model.config):
        raise UnsupportedAttention("its attention pattern is neither causal nor sliding")
    tokens = [1 + (7 * at) % (loaded.vocab_size - 1) for at in range(_PROBE_TOKENS)]
    expected = runner.plain(tokens).float()
    if ops is not None:
        fuse_layers(loaded.model, attention, ops)
        pack_linears(loaded.model, ops.products)
    try:
        attention.install(loaded.model)
        whole = runner.logits(tokens, [Span(0, _PROBE_TOKENS, ())], range(_PROBE_TOKENS))
        _agree(expected, whole, loaded.dtype)
        if not attention.layers:
            raise UnsupportedAttention("it has no attention layers")
        if ops is not None and all_layers_fused(loaded.model):
            runner.replace_model(FusedModel(loaded.model, attention, ops))
        runner.allocate(2)
        cuts = [0, 5, _PROBE_TOKENS - 1, _PROBE_TOKENS]
        for start, end in itertools.pairwise(cuts):
            span = Span(start, end - start, [1])
            part = runner.logits(tokens[start:end], [span], range(end - start))
            _agree(expected[start:end], part, loaded.dtype)
    except UnsupportedAttention:
        raise
    except EngineBroken as error:
        raise UnsupportedAttention(str(error)) from error
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        raise UnsupportedAttention(f"{type(error).__name__}: {error}") from error


def _agree(expected: torch.Tensor, found: torch.Tensor, dtype: torch.dtype) -> None:
    off = (expected - found.float().to(expected.device)).abs().max().item()
    limit = 1e-3 if dtype == torch.float32 else 0.08
    if not off <= limit * max(1.0, expected.abs().max().item()):
        raise UnsupportedAttention(f"its logits differ by {off:.3g} from transformers' own")


def blocks_for(
    config: EngineConfig, loaded: LoadedModel, attention: PagedAttention, max_running: int
) -> int:
    """Blocks of a model's pool, as `num_blocks_for` counts them."""
    return num_blocks_for(
        config,
        attention.layers,
        block_size=attention.backend.block_size,
        context_length=loaded.context_length,
        max_running=max_running,
    )


def _info(
    engine: str,
    loaded: LoadedModel,
    *,
    capacity: int,
    context: int | None = None,
    kv_blocks: int = 0,
    block_size: int = 0,
) -> EngineInfo:
    return EngineInfo(
        engine=engine,
        context_length=context or loaded.context_length,
        eos_token_ids=loaded.eos_token_ids,
        vocab_size=loaded.vocab_size,
        capacity=capacity,
        kv_blocks=kv_blocks,
        block_size=block_size,
        grammars=engine == "paged",
        scores_prompts=loaded.kind == "causal",
        beams=engine == "paged",
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        weights_digest=loaded.digest,
    )
