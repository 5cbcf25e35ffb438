"""What a checkpoint says of itself as an embedding model, in the files of sentence-transformers.

Read by both processes: the engine pools by them, the HTTP process prepares texts. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, cast, get_args

from worker.engine.protocol import ModelLoadError

Pooling: TypeAlias = Literal["mean", "cls", "last", "max"]
"""How the states of an input's tokens become one vector."""

_POOLING_NAMES: Final[Mapping[str, Pooling]] = {
    "mean": "mean",
    "cls": "cls",
    "lasttoken": "last",
    "max": "max",
}
_POOLING_FLAGS: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_NEVER: Final = 10**9
"""Tokenizers state such a length when they know none."""


@dataclass(frozen=True, slots=True)
class SentenceFiles:
    """The part of these files that is used.

    Attributes:
        pooling: None where the files name none: no embedding model of sentence-transformers.
        max_tokens: longest input that the model was made for; None when it is not said.
        prompt: stands before every text.
        lower: whether texts are taken in lower case.
    """

    pooling: Pooling | None = None
    max_tokens: int | None = None
    prompt: str = ""
    lower: bool = False

    def prepared(self, text: str) -> str:
        """The text as the tokenizer is to see it."""
        text = self.prompt + text
        return text.lower() if self.lower else text


def read_sentence_files(path: str, revision: str | None) -> SentenceFiles:
    """The files of a model folder or hub id; all of them may be missing.

    Raises:
        ModelLoadError: a file is no JSON, or asks for what is not done here.
    """
    from transformers.utils import cached_file

    def read(name: str) -> Any:
        found = cached_file(
            path,
            name,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found is None:
            return None
        try:
            with open(found, encoding="utf-8") as file:
                return json.load(file)
        except (OSError, ValueError) as error:
            raise ModelLoadError(f"{name} of {path} cannot be read: {error}") from error

    return sentence_files(read)


def sentence_files(read: Callable[[str], Any]) -> SentenceFiles:
    """What the files say.

    Args:
        read: the JSON value of a file, None where there is no such file.

    Raises:
        ModelLoadError: as `read_sentence_files`.
    """
    modules = read("modules.json") or []
    try:
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    except (TypeError, KeyError) as error:
        raise ModelLoadError("modules.json is no list of modules with types") from error
    pooled = [module for module, kind in zip(modules, kinds, strict=True) if kind == "Pooling"]
    bert = read("sentence_bert_config.json") or {}
    stated = bert.get("max_seq_length") or (read("tokenizer_config.json") or {}).get(
        "model_max_length"
    )
    max_tokens = int(stated) if stated and stated < _NEVER else None
    if not pooled:
        return SentenceFiles(max_tokens=max_tokens)
    if others := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
        raise ModelLoadError(f"modules.json names {', '.join(others)}, which is not supported")
    settings = read("config_sentence_transformers.json") or {}
    default = settings.get("default_prompt_name")
    prompt = str((settings.get("prompts") or {}).get(default) or "") if default else ""
    pooling = read(f"{pooled[0]['path']}/config.json") or {}
    if prompt and not pooling.get("include_prompt", True):
        raise ModelLoadError("1_Pooling leaves the prompt's tokens out, which is not supported")
    return SentenceFiles(_pooling(pooling), max_tokens, prompt, bool(bert.get("do_lower_case")))


def _pooling(config: Mapping[str, Any]) -> Pooling:
    """The one mode that a pooling configuration names, in its older or its newer form."""
    named = config.get("pooling_mode")
    if named is None:
        named = [mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [named] if isinstance(named, str) else [str(mode) for mode in named]
    if len(modes) != 1 or modes[0] not in _POOLING_NAMES:
        raise ModelLoadError(f"the pooling {' + '.join(modes)} of this model is not supported")
    return _POOLING_NAMES[modes[0]]


def chosen_pooling(asked: str, files: SentenceFiles) -> Pooling:
    """What `--pooling` comes to: `auto` is what the files say, and the mean without any."""
    if asked in get_args(Pooling):
        return cast(Pooling, asked)
    return files.pooling or "mean"
