"""The engines by name: the only place that knows them all. Builders import what they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from worker.engine.protocol import Engine, ModelLoadError

if TYPE_CHECKING:
    from worker.config import Settings
    from worker.text.prompt import TextModel


@dataclass(frozen=True, slots=True)
class EngineKind:
    """One choice of `--engine`.

    Attributes:
        build: an engine that is not started yet.
        load_text: the model's tokenizer and template; may take seconds, so call it in a thread.
        needs_model: whether it loads a checkpoint (`--model-path`, else the embedded demo model).
        draws_seed: whether a request without a seed gets a random one.
    """

    build: Callable[[Settings], Engine]
    load_text: Callable[[Settings], TextModel]
    needs_model: bool = True
    draws_seed: bool = True


def _process(name: str) -> EngineKind:
    """An engine that runs a transformers model in a process of its own."""

    def build(settings: Settings) -> Engine:
        from worker.engine.process import EngineConfig, EngineProcess

        _require_packages(name, "torch", "transformers", "accelerate")
        return EngineProcess(
            EngineConfig(
                engine=name,
                model_path=settings.resolved_model_path,
                revision=settings.revision,
                dtype=settings.dtype,
                device=settings.device,
                num_gpus=settings.num_gpus,
                tensor_parallel_size=settings.tensor_parallel_size,
                gpus=settings.gpus,
                max_gpu_memory=settings.max_gpu_memory,
                load_8bit=settings.load_8bit,
                cpu_offloading=settings.cpu_offloading,
                trust_remote_code=settings.trust_remote_code,
                pooling=settings.pooling,
                max_model_len=settings.max_model_len,
                max_batch_tokens=settings.max_batch_tokens,
                kv_cache_gb=settings.kv_cache_gb,
                gpu_memory_share=settings.gpu_memory_share,
                enforce_eager=settings.enforce_eager,
                overlap=settings.overlap,
                max_running=settings.max_running,
                native_kernels=settings.native_kernels,
                squeeze_weights=settings.squeeze_weights,
                prompt_lookup=settings.prompt_lookup,
                seed=settings.seed,
                stall_s=settings.engine_stall_s,
            )
        )

    def load_text(settings: Settings) -> TextModel:
        from worker.text.prompt import load_text_model

        return load_text_model(
            settings.resolved_model_path,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            conv_template=settings.conv_template,
            chat_template=settings.chat_template,
            tool_call_parser=settings.tool_call_parser,
            reasoning_parser=settings.reasoning_parser,
        )

    return EngineKind(build, load_text)


def _require_packages(engine: str, *packages: str) -> None:
    """Raises `ModelLoadError` when one is not installed; asked by metadata, nothing is imported."""
    for package in packages:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            raise ModelLoadError(
                f"the engine {engine!r} needs {package}: install Trireme with its extra `worker`, "
                "or take --engine sim"
            ) from None


def _sim() -> EngineKind:
    """The model-free engine, in this process."""

    def build(settings: Settings) -> Engine:
        from worker.engine.sim import DEFAULT_CONTEXT_LENGTH, SimEngine, SimOptions

        return SimEngine(
            SimOptions(
                tokens=settings.sim_tokens,
                ttft_s=settings.sim_ttft_ms / 1000,
                itl_s=settings.sim_itl_ms / 1000,
                max_running=settings.sim_max_running,
                context_length=settings.max_model_len or DEFAULT_CONTEXT_LENGTH,
            )
        )

    def load_text(settings: Settings) -> TextModel:
        from worker.text.prompt import TextModel
        from worker.text.templates import choose_template
        from worker.text.words import WordTokenizer

        return TextModel(WordTokenizer(), choose_template(None, settings.conv_template, None))

    return EngineKind(build, load_text, needs_model=False, draws_seed=False)


ENGINES: Final[Mapping[str, EngineKind]] = MappingProxyType(
    {"paged": _process("paged"), "generate": _process("generate"), "sim": _sim()}
)
