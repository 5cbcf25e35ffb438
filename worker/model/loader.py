"""Loads a checkpoint: a folder or a hub id, safetensors only, with one-line reasons on failure."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils import logging as hf_logging

from worker.engine.config import EngineConfig
from worker.engine.protocol import ModelLoadError
from worker.model.parallel import check_model, keep_local
from worker.model.scores import check_scores
from worker.sentence_files import Pooling, SentenceFiles, chosen_pooling, read_sentence_files

Kind: TypeAlias = Literal["causal", "seq2seq", "encoder", "cross_encoder"]

_AUTO_CLASSES = {
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "encoder": AutoModel,
    "cross_encoder": AutoModelForSequenceClassification,
}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in eval mode with what the engines need to know of it.

    Attributes:
        pooling: how the states of an input become its embedding.
    """

    model: Any
    kind: Kind
    device: torch.device
    dtype: torch.dtype
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    digest: str
    pooling: Pooling = "mean"


def load_model(config: EngineConfig, report: Callable[[str], None]) -> LoadedModel:
    """Load what `config` names.

    Args:
        report: called with the progress, for people.

    Raises:
        ModelLoadError: with a one-line reason.
    """
    device = pick_device(config)
    folder = Path(config.model_path)
    if folder.is_dir():
        _check_weights(folder)
    elif config.model_path.startswith(("/", ".", "~")):
        raise ModelLoadError(f"no model folder at {config.model_path}")
    try:
        report("reading the configuration")
        hf_config = AutoConfig.from_pretrained(
            config.model_path,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
        files = read_sentence_files(config.model_path, config.revision)
        kind = kind_of(hf_config, files)
        _check_kind(config, kind, hf_config)
        context_length = _context_length(config, hf_config)
        if config.tensor_parallel_size > 1:
            check_model(hf_config, config.tensor_parallel_size)
        dtype = pick_dtype(config.dtype, hf_config, device)
        with _progress(report):
            model = _AUTO_CLASSES[kind].from_pretrained(
                config.model_path,
                config=hf_config,
                revision=config.revision,
                trust_remote_code=config.trust_remote_code,
                use_safetensors=True,
                dtype=dtype,
                **_placement(config, device),
            )
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(_reason(config.model_path, error)) from error
    model.eval().requires_grad_(False)
    if kind in ("encoder", "cross_encoder"):
        context_length = _encoder_context(config, model, context_length, files)
    pooling = chosen_pooling(config.pooling, files)
    if config.tensor_parallel_size > 1:
        keep_local(model)
    text = hf_config.get_text_config()
    return LoadedModel(
        model=model,
        kind=kind,
        device=model.device if device.type == "cuda" else device,
        dtype=dtype,
        context_length=context_length,
        vocab_size=int(text.vocab_size),
        eos_token_ids=_eos_of(config, hf_config),
        digest=_digest(folder, config, hf_config, dtype, pooling),
        pooling=pooling,
    )


def kind_of(hf_config: Any, files: SentenceFiles) -> Kind:
    """Whether a configuration is of a causal, an encoder-decoder or an encoder model.

    A classifier scores pairs of texts, unless its files say that it embeds.
    """
    if getattr(hf_config, "is_encoder_decoder", False):
        if hf_config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
            return "seq2seq"
        raise ModelLoadError(f"no text generation for model type {hf_config.model_type!r}")
    architecture = (getattr(hf_config, "architectures", None) or [""])[0]
    generates = architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))
    if generates and hf_config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    if generates and getattr(hf_config, "auto_map", None):
        return "causal"
    if architecture.endswith("ForSequenceClassification") and files.pooling is None:
        return "cross_encoder"
    if architecture.endswith(("Model", "ForMaskedLM", "ForSequenceClassification")):
        return "encoder"
    if not architecture and hf_config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise ModelLoadError(f"cannot serve architecture {architecture or hf_config.model_type!r}")


def _check_kind(config: EngineConfig, kind: Kind, hf_config: Any) -> None:
    if not getattr(hf_config.get_text_config(), "vocab_size", None):
        raise ModelLoadError(f"a model of type {hf_config.model_type!r} takes no texts")
    if kind == "cross_encoder":
        check_scores(hf_config)
        if config.pooling != "auto":
            raise ModelLoadError(f"--pooling {config.pooling}: this model gives no embeddings")
    if config.tensor_parallel_size > 1 and kind != "causal":
        raise ModelLoadError(
            f"--tensor-parallel-size {config.tensor_parallel_size}: only models that generate text "
            "are cut into parts"
        )


def context_length_of(hf_config: Any) -> int:
    """Tokens that the model was made for; rope scaling is counted once.

    Llama 3 and long-rope checkpoints already state the scaled length, and so do those with a
    scaling for each kind of layer; linear, dynamic and YaRN ones state the original one.
    """
    text = hf_config.get_text_config()
    names = ("max_position_embeddings", "max_sequence_length", "seq_length", "max_seq_len")
    stated = next((int(getattr(text, name)) for name in names if getattr(text, name, None)), 0)
    if not stated:
        return int(getattr(text, "n_positions", None) or 2048)
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    factor = rope.get("factor")
    if not factor or not isinstance(kind, str) or kind not in ("linear", "dynamic", "yarn"):
        return stated
    original = rope.get("original_max_position_embeddings")
    return max(stated, int((original or stated) * factor))


def _context_length(config: EngineConfig, hf_config: Any) -> int:
    own, asked = context_length_of(hf_config), config.max_model_len
    if asked is not None and asked > own:
        raise ModelLoadError(
            f"--max-model-len {asked} is above the model's own context length of {own} tokens"
        )
    return asked or own


def _encoder_context(config: EngineConfig, model: Any, own: int, files: SentenceFiles) -> int:
    """Tokens that an encoder takes: as many as it has positions, and was made for.

    Models of RoBERTa's family count positions from behind their padding token's id.
    """
    for name, module in model.named_modules():
        offset = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and offset is not None:
            own = min(own, module.num_embeddings - offset - 1)
    asked = config.max_model_len
    if asked is not None and asked > own:
        raise ModelLoadError(f"--max-model-len {asked} is above the model's own {own} tokens")
    return asked or min(own, files.max_tokens or own)


def pick_device(config: EngineConfig) -> torch.device:
    """The device asked for; `auto` takes CUDA, then the CPU.

    Raises:
        ModelLoadError: when it is not there, or options need one that is not.
    """
    if config.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = config.gpus
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelLoadError(f"--device {name}: unknown device") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(f"--device {name}: no CUDA device is usable here")
    if device.type == "cuda" and config.num_gpus > torch.cuda.device_count():
        raise ModelLoadError(
            f"--num-gpus {config.num_gpus}: only {torch.cuda.device_count()} are visible"
        )
    if config.tensor_parallel_size > 1:
        _check_parallel(config.tensor_parallel_size, device)
    if device.type != "cuda":
        for flag, given in (
            ("--num-gpus above 1", config.num_gpus > 1),
            ("--max-gpu-memory", config.max_gpu_memory is not None),
            ("--cpu-offloading", config.cpu_offloading),
        ):
            if given:
                raise ModelLoadError(f"{flag} needs CUDA devices, and the model runs on {name}")
    return device


def _check_parallel(size: int, device: torch.device) -> None:
    if device.type not in ("cpu", "cuda"):
        raise ModelLoadError(f"--tensor-parallel-size {size} needs CUDA devices or the CPU")
    if device.type == "cuda" and size > torch.cuda.device_count():
        raise ModelLoadError(
            f"--tensor-parallel-size {size}: only {torch.cuda.device_count()} GPUs are visible"
        )


def pick_dtype(name: str, hf_config: Any, device: torch.device) -> torch.dtype:
    """The dtype asked for. `auto` takes the checkpoint's, where the device computes in it:
    float16 becomes float32 on a CPU, and so does bfloat16 on a CPU without its instructions."""
    named = {
        "float32": torch.float32,
        "float": torch.float32,
        "float16": torch.float16,
        "half": torch.float16,
        "bfloat16": torch.bfloat16,
    }
    if name != "auto":
        return named[name]
    dtype = getattr(hf_config.get_text_config(), "dtype", None) or getattr(hf_config, "dtype", None)
    dtype = dtype if isinstance(dtype, torch.dtype) else named.get(str(dtype), torch.float32)
    if device.type == "cpu" and dtype == torch.float16:
        return torch.float32
    if device.type == "cpu" and dtype == torch.bfloat16 and not _cpu_has_bf16():
        return torch.float32
    return dtype


def _cpu_has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _placement(config: EngineConfig, device: torch.device) -> dict[str, Any]:
    """Where `from_pretrained` puts the weights, and whether it quantises them."""
    placed: dict[str, Any] = {}
    if config.tensor_parallel_size > 1:
        from transformers import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_size=config.tensor_parallel_size)}
    if config.load_8bit:
        placed["quantization_config"] = _int8()
    if device.type != "cuda":
        return {**placed, "device_map": {"": device}} if device.type != "cpu" else placed
    if config.num_gpus == 1 and not config.cpu_offloading and config.max_gpu_memory is None:
        return {**placed, "device_map": {"": device}}
    memory = config.max_gpu_memory
    if memory is None:
        free = [torch.cuda.mem_get_info(index)[0] for index in range(config.num_gpus)]
        limits: dict[int | str, int | str] = {i: int(0.85 * one) for i, one in enumerate(free)}
    else:
        limits = {index: memory for index in range(config.num_gpus)}
    limits["cpu"] = "1000GiB" if config.cpu_offloading else 0
    even = "sequential" if config.max_gpu_memory else "balanced"
    return {**placed, "device_map": "auto" if config.cpu_offloading else even, "max_memory": limits}


def _int8() -> Any:
    """int8 weights by torchao, on CPU and CUDA."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig
    except ImportError as error:
        raise ModelLoadError(
            "--load-8bit needs torchao: install Trireme's extra `quant`"
        ) from error
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _check_weights(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"{folder} has no config.json: it is not a model folder")
    if any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise ModelLoadError(
            f"{folder} has pickled weights only (.bin), which can run code when they are read: "
            "convert them to safetensors"
        )
    raise ModelLoadError(f"{folder} has no *.safetensors weights")


def _eos_of(config: EngineConfig, hf_config: Any) -> tuple[int, ...]:
    """End-of-sequence ids of the generation configuration and of the model's, in this order."""
    found: list[int] = []
    try:
        generation = GenerationConfig.from_pretrained(
            config.model_path, revision=config.revision
        ).eos_token_id
    except OSError:
        generation = None
    for ids in (generation, hf_config.get_text_config().eos_token_id):
        for one in ids if isinstance(ids, list | tuple) else [ids]:
            if isinstance(one, int) and one not in found:
                found.append(one)
    return tuple(found)


def _digest(
    folder: Path, config: EngineConfig, hf_config: Any, dtype: torch.dtype, pooling: Pooling
) -> str:
    """sha256 over the configuration, the weights' sizes and index, and how they are loaded.

    The bytes of a local checkpoint's headers are hashed, not its gigabytes of weights.
    """
    found = hashlib.sha256()
    fields = hf_config.to_dict()
    for noise in ("_name_or_path", "transformers_version"):
        fields.pop(noise, None)
    found.update(json.dumps(fields, sort_keys=True, default=str).encode())
    found.update(f"{dtype} {config.engine} 8bit={config.load_8bit} {pooling}".encode())
    if config.tensor_parallel_size > 1:
        found.update(f" parts={config.tensor_parallel_size}".encode())  # they add up otherwise
    if folder.is_dir():
        for path in sorted(folder.glob("*.safetensors")):
            found.update(f"{path.name} {path.stat().st_size}".encode())
            with path.open("rb") as file:
                found.update(file.read(1 << 20))
    else:
        found.update(f"{config.model_path}@{config.revision}".encode())
    return found.hexdigest()


def _reason(path: str, error: Exception) -> str:
    """One line for a person, from whatever transformers or safetensors raised."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    if "trust_remote_code" in text or "custom code" in text:
        return f"{path} needs code of its own: give --trust-remote-code if you trust it"
    if name == "SafetensorError" or ("safetensor" in text.lower() and "header" in text.lower()):
        return f"{path} has a broken safetensors file (truncated or not safetensors): {text[:200]}"
    first_sentence = re.split(r"(?<=[.!?])\s", text)[0]
    return f"{path} cannot be loaded: {name}: {first_sentence[:300]}"


class _progress:
    """Reports transformers' weight-loading bar while it is entered."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._previous: Any = None

    def __enter__(self) -> None:
        self._previous = hf_logging.set_tqdm_hook(self._make)

    def __exit__(self, *_exc: object) -> None:
        hf_logging.set_tqdm_hook(self._previous)

    def _make(self, _factory: Any, args: Any, kwargs: Any) -> _Bar:
        return _Bar(self._report, *args, **kwargs)


class _Bar:
    """What transformers uses of tqdm, with percents going to `report`."""

    def __init__(
        self,
        report: Callable[[str], None],
        iterable: Any = None,
        total: int | None = None,
        desc: str | None = None,
        **_look: Any,
    ) -> None:
        self._report = report
        self._iterable = iterable
        self._total = total if total is not None else (len(iterable) if iterable else 0)
        self._desc = (desc or "loading weights").lower().rstrip(": ")
        self._done = 0
        self._shown = -1

    def __iter__(self) -> Any:
        for one in self._iterable or ():
            yield one
            self.update(1)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_exc: object) -> None:
        return None

    def update(self, n: int = 1) -> None:
        self._done += n
        percent = 100 * self._done // self._total if self._total else 0
        if percent != self._shown:
            self._shown = percent
            self._report(f"{self._desc} {percent}%")

    def set_postfix(self, *_args: Any, **_kwargs: Any) -> None:
        return None

    set_description = set_postfix
    refresh = set_postfix

    def close(self) -> None:
        return None
