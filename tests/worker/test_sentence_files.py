"""What the files of sentence-transformers come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from worker.engine.protocol import ModelLoadError
from worker.sentence_files import (
    SentenceFiles,
    chosen_pooling,
    read_sentence_files,
    sentence_files,
)


def modules(*kinds: str) -> list[dict[str, str]]:
    return [{"path": f"{i}_{kind}", "type": f"st.models.{kind}"} for i, kind in enumerate(kinds)]


def read(**files: Any) -> SentenceFiles:
    named = {"modules.json": modules("Transformer", "Pooling"), "1_Pooling/config.json": {}}
    keys = {
        "modules": "modules.json",
        "pooling": "1_Pooling/config.json",
        "bert": "sentence_bert_config.json",
        "tokenizer": "tokenizer_config.json",
        "settings": "config_sentence_transformers.json",
    }
    named |= {keys[key]: value for key, value in files.items()}
    return sentence_files(named.get)


def test_without_files_nothing_is_said_and_the_mean_is_taken(tmp_path: Path) -> None:
    assert read_sentence_files(str(tmp_path), None) == SentenceFiles()
    assert chosen_pooling("auto", SentenceFiles()) == "mean"


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
    ],
)
def test_poolings_in_the_older_and_the_newer_form(config: dict[str, Any], pooling: str) -> None:
    assert read(pooling=config).pooling == pooling
    assert chosen_pooling("auto", read(pooling=config)) == pooling
    assert chosen_pooling("max", read(pooling=config)) == "max"


def test_lengths_come_from_the_model_then_from_its_tokenizer() -> None:
    assert read(bert={"max_seq_length": 256}, tokenizer={"model_max_length": 512}).max_tokens == 256
    assert read(tokenizer={"model_max_length": 512}).max_tokens == 512
    assert read(tokenizer={"model_max_length": 10**30}).max_tokens is None


def test_the_default_prompt_and_lower_case_prepare_a_text() -> None:
    prompts = {"prompts": {"query": "Query: ", "document": ""}}
    assert read(settings=prompts).prepared("Hi") == "Hi"
    found = read(settings={**prompts, "default_prompt_name": "query"}, bert={"do_lower_case": True})
    assert found.prepared("Hi") == "query: hi"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"modules": modules("Transformer", "Pooling", "Dense")}, "names Dense"),
        ({"pooling": {"pooling_mode": "weightedmean"}}, "the pooling weightedmean"),
        (
            {"pooling": {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}},
            r"the pooling cls \+ max",
        ),
        (
            {
                "pooling": {"include_prompt": False},
                "settings": {"prompts": {"a": "b"}, "default_prompt_name": "a"},
            },
            "leaves the prompt's tokens out",
        ),
        ({"modules": [{"path": "x"}]}, r"modules\.json"),
    ],
)
def test_what_is_not_done_is_refused(files: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        read(**files)


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"modules\.json of .* cannot be read"):
        read_sentence_files(str(tmp_path), None)
