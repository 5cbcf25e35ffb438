"""An embedding model and a cross-encoder behind real processes, asked over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
import transformers as hf

from tests.stack.processes import Stack, running
from tests.worker.model.encoders import PAIRS, TEXTS, add_sentence_files, save

HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]
LONG = "word " * 200


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    add_sentence_files(save(root / "embedder", "roberta"), "cls_token")
    save(root / "ranker", "bert", hf.AutoModelForSequenceClassification)
    return {"embedder": root / "embedder", "ranker": root / "ranker"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("stack")) as made:
        for folder in folders.values():
            made.add_worker("--model-path", str(folder), "--dtype", "float32")
        made.wait_serving()
        yield made


@pytest.fixture
def client(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.gateway.url}/v1", api_key="none", max_retries=0)


def ask(stack: Stack, path: str, **body: Any) -> Any:
    answer = stack.post(path, body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@torch.inference_mode()
def vectors(folder: Path, texts: list[str]) -> torch.Tensor:
    """The state of the first token, by transformers alone, one text at a time."""
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    model = hf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    found = [
        model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0] for text in texts
    ]
    return torch.nn.functional.normalize(torch.stack(found), dim=1)


@torch.inference_mode()
def scores(folder: Path, pairs: list[tuple[str, str]]) -> list[float]:
    """The sigmoid of a cross-encoder's logit, by transformers alone, one pair at a time."""
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    auto = hf.AutoModelForSequenceClassification
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    return [
        model(**tokenizer(*texts, return_tensors="pt")).logits[0, 0].sigmoid().item()
        for texts in pairs
    ]


def test_embeddings_by_the_official_client(client: openai.OpenAI, folders: dict[str, Path]) -> None:
    """It asks for base64 unless told otherwise."""
    expected = vectors(folders["embedder"], TEXTS)
    for encoding in ({}, {"encoding_format": "float"}):
        answer = client.embeddings.create(model="embedder", input=TEXTS, **encoding)  # type: ignore[call-overload]
        found = torch.tensor([one.embedding for one in answer.data])
        assert (found - expected).abs().max() < 1e-5
    tokenizer = hf.AutoTokenizer.from_pretrained(folders["embedder"])
    ids = [tokenizer(text).input_ids for text in TEXTS]
    assert answer.usage.prompt_tokens == sum(map(len, ids))
    by_ids = client.embeddings.create(model="embedder", input=ids, dimensions=8)
    cut = torch.nn.functional.normalize(expected[:, :8], dim=1)
    assert (torch.tensor([one.embedding for one in by_ids.data]) - cut).abs().max() < 1e-5


def test_concurrent_calls_get_their_own_vectors(
    client: openai.OpenAI, folders: dict[str, Path]
) -> None:
    def one(number: int) -> torch.Tensor:
        answer = client.embeddings.create(model="embedder", input=f"text {number} " * (number % 7))
        return torch.tensor(answer.data[0].embedding)

    with ThreadPoolExecutor(16) as pool:
        found = torch.stack(list(pool.map(one, range(1, 7))) + list(pool.map(one, range(8, 14))))
    texts = [f"text {number} " * (number % 7) for number in (*range(1, 7), *range(8, 14))]
    assert (found - vectors(folders["embedder"], texts)).abs().max() < 1e-5


def test_many_tokens_may_wait_though_the_context_is_short(client: openai.OpenAI) -> None:
    text = "word " * 25

    def one(_number: int) -> int:
        return len(client.embeddings.create(model="embedder", input=[text] * 40).data)

    with ThreadPoolExecutor(8) as pool:  # some 16,000 tokens, which is 250 contexts
        assert list(pool.map(one, range(8))) == [40] * 8


def test_a_long_input_is_the_mean_of_pieces_with_their_own_special_tokens(
    client: openai.OpenAI, folders: dict[str, Path]
) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(folders["embedder"])
    model = hf.AutoModel.from_pretrained(folders["embedder"], dtype=torch.float32).eval()
    inner = tokenizer(LONG, add_special_tokens=False).input_ids
    pieces = [[0, *inner[at : at + 62], 2] for at in range(0, len(inner), 62)]
    assert len(pieces) > 2
    total = torch.zeros(32)
    with torch.inference_mode():
        for piece in pieces:
            states = model(torch.tensor([piece])).last_hidden_state[0]
            total += len(piece) * states[0]
    [found] = client.embeddings.create(model="embedder", input=LONG).data
    expected = torch.nn.functional.normalize(total, dim=0)
    assert (torch.tensor(found.embedding) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("model", ["embedder", "ranker"])
def test_chat_and_completions_are_refused(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as chat:
        client.chat.completions.create(model=model, messages=HELLO)
    with pytest.raises(openai.BadRequestError) as text:
        client.completions.create(model=model, prompt="Hello")
    for caught in (chat, text):
        assert (caught.value.code, caught.value.param) == ("unsupported_by_model", "model")


def test_a_cross_encoder_gives_no_embeddings(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="ranker", input="Hello")
    assert (caught.value.code, caught.value.param) == ("unsupported_by_model", "model")


def test_the_record_tells_what_a_model_does(stack: Stack) -> None:
    workers = httpx.get(f"{stack.controller.url}/fleet", timeout=5).json()["workers"]
    records = {one["name"]: one for worker in workers for one in worker["models"]}
    assert records["embedder"]["capabilities"] == ["embeddings", "score"]
    assert records["ranker"]["capabilities"] == ["score"]
    assert records["embedder"]["context_length"] == records["ranker"]["context_length"] == 64
    assert records["embedder"]["engine"] == records["ranker"]["engine"] == "encoder"


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
def test_scores_of_a_cross_encoder(stack: Stack, folders: dict[str, Path], path: str) -> None:
    queries, documents = (list(texts) for texts in zip(*PAIRS, strict=True))
    answer = ask(stack, path, model="ranker", text_1=queries, text_2=documents)
    assert answer["object"] == "list"
    assert answer["model"] == "ranker"
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    assert {one["object"] for one in answer["data"]} == {"score"}
    found = [one["score"] for one in answer["data"]]
    assert found == pytest.approx(scores(folders["ranker"], PAIRS), abs=1e-5)
    tokenizer = hf.AutoTokenizer.from_pretrained(folders["ranker"])
    num_tokens = sum(len(tokenizer(*texts).input_ids) for texts in PAIRS)
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def test_one_query_for_all_documents(stack: Stack, folders: dict[str, Path]) -> None:
    expected = scores(folders["ranker"], [("who", text) for text in TEXTS])
    for fields in ({"text_1": "who", "text_2": TEXTS}, {"queries": ["who"], "documents": TEXTS}):
        answer = ask(stack, "/v1/score", model="ranker", **fields)
        assert [one["score"] for one in answer["data"]] == pytest.approx(expected, abs=1e-5)


def test_scores_of_an_embedding_model_are_cosines(stack: Stack, folders: dict[str, Path]) -> None:
    answer = ask(stack, "/v1/score", model="embedder", text_1="who", text_2=TEXTS)
    made = vectors(folders["embedder"], ["who", *TEXTS])
    expected = (made[1:] @ made[0]).tolist()
    assert [one["score"] for one in answer["data"]] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_documents_are_ranked(stack: Stack, folders: dict[str, Path], path: str) -> None:
    expected = scores(folders["ranker"], [("who", text) for text in TEXTS])
    order = sorted(range(len(TEXTS)), key=lambda at: -expected[at])
    documents: list[Any] = [TEXTS[0], *({"text": text} for text in TEXTS[1:])]
    answer = ask(stack, path, model="ranker", query="who", documents=documents)
    assert [one["index"] for one in answer["results"]] == order
    for one in answer["results"]:
        assert one["document"] == {"text": TEXTS[one["index"]]}
        assert one["relevance_score"] == pytest.approx(expected[one["index"]], abs=1e-5)
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0
    best = ask(
        stack, path, model="ranker", query="who", documents=TEXTS, top_n=2, return_documents=False
    )
    assert [one["index"] for one in best["results"]] == order[:2]
    assert all("document" not in one for one in best["results"])


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/score", {"text_1": "a", "text_2": ["b", LONG]}, "text_2[1]"),
        ("/v1/score", {"queries": LONG, "documents": "b"}, "documents[0]"),
        ("/v1/rerank", {"query": "a", "documents": ["b", "c", {"text": LONG}]}, "documents[2]"),
    ],
)
def test_a_pair_that_does_not_fit_is_named(
    stack: Stack, path: str, body: dict[str, Any], param: str
) -> None:
    answer = stack.post(path, {"model": "ranker", **body})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert "64 tokens" in error["message"]
