"""What crosses between the worker's two processes comes back as it was, large things in pieces."""

from __future__ import annotations

import pytest

from worker.engine import pipe
from worker.engine.engine import JobFailed
from worker.engine.protocol import (
    EngineLoad,
    Job,
    PromptOutput,
    RawLogprob,
    SequenceParams,
    StepOutput,
)


def test_a_step_comes_back_as_it_was() -> None:
    step = pipe.Step(
        EngineLoad(running=2, step=7, busy=True),
        tokens=[("a", StepOutput(0, 3, [9], [RawLogprob(9, -0.5, [(9, -0.5)])], "stop", 9, 4))],
        prompts=[("b", PromptOutput([RawLogprob(1, None)]))],
        failures=[("c", JobFailed("bad_logits", "NaN"))],
    )
    assert pipe.decode_from_engine(pipe.encode(step)) == step


def test_a_job_comes_back_as_it_was() -> None:
    params = SequenceParams(max_tokens=3, logit_bias=((1, 2.0),), stop_token_ids=(5,))
    submit = pipe.Submit(Job("a", [1, 2], params, n=2, deadline_s=1.5, cache_salt="s"))
    assert pipe.decode_to_engine(pipe.encode(submit)) == submit


@pytest.mark.parametrize("top", [0, 1, 20])
def test_scores_of_a_long_prompt_are_cut_into_pieces_and_none_is_lost(top: int) -> None:
    scores = [RawLogprob(i, -1.0, [(i, -1.0)] * top) for i in range(40_000)]
    pieces = list(pipe.pieces(PromptOutput(scores)))
    assert [one for piece in pieces for one in piece.logprobs] == scores
    assert max(len(piece.logprobs) * (1 + top) for piece in pieces) <= pipe.PIECE_NUMBERS
    assert len(pieces) == -(-len(scores) // (pipe.PIECE_NUMBERS // (1 + top)))


def test_numbers_are_ids_and_log_probabilities() -> None:
    assert pipe.numbers_of(StepOutput(0, 0, [5, 6])) == 2
    scored = [RawLogprob(5, -0.5, [(5, -0.5), (7, -1.0)]), RawLogprob(6, -0.1)]
    assert pipe.numbers_of(StepOutput(0, 0, [5, 6], scored)) == 6


def test_many_vectors_are_cut_into_messages_of_which_the_last_says_so() -> None:
    vectors = [[float(i)] * 1024 for i in range(100)]
    messages = list(pipe.embedded(7, vectors))
    assert [one for message in messages for one in message.vectors] == vectors
    assert [message.more for message in messages] == [True] * 6 + [False]
    assert {message.call_id for message in messages} == {7}


def test_a_vector_beyond_the_size_of_a_message_is_a_message() -> None:
    vectors = [[0.5] * (2 * pipe.PIECE_NUMBERS)] * 2
    assert [len(message.vectors) for message in pipe.embedded(1, vectors)] == [1, 1]
