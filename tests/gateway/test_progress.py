from __future__ import annotations

from gateway.progress import Progress
from protocol.errors import TriremeError
from protocol.fleet import ModelRecord
from protocol.generation import (
    Begun,
    Delta,
    Done,
    Event,
    Failed,
    GenerateRequest,
    Prompt,
    SamplingParams,
    Started,
    TokenLogprob,
)

STARTED = Started(3, "w1", "d1", seed=7)
RECORD = ModelRecord(name="m", digest="d1", context_length=128)
REQUEST = GenerateRequest(request_id="r", model="m", prompt="x", sampling=SamplingParams(n=2))


def taken(*events: Event) -> Progress:
    progress = Progress(REQUEST)
    assert progress.take(list(events)) == list(events)
    return progress


def test_before_anything_the_request_is_sent_as_it_is() -> None:
    progress = Progress(REQUEST)
    assert progress.attempt() is REQUEST
    assert progress.can_go_on(None)
    assert not progress.delivered


def test_a_request_of_which_nothing_was_told_begins_anew() -> None:
    """It keeps its place, and the next worker's word counts."""
    progress = taken(STARTED)
    assert progress.attempt() == REQUEST.model_copy(update={"admitted": True})
    assert progress.can_go_on(None), "any worker may begin"
    second = Started(4, "w2", "d2", seed=8)
    assert progress.take([second, Delta(0, 0, [5], "a")]) == [second, Delta(0, 0, [5], "a")]
    assert progress.take([Started(4, "w3", "d2", seed=9)]) == []
    assert progress.attempt().sampling.seed == 8
    assert progress.tokens.prompt_tokens == 4


def test_the_next_worker_gets_the_tokens_so_far() -> None:
    progress = Progress(REQUEST)
    progress.begin(RECORD)
    for event in (
        STARTED,
        Delta(0, 0, [5, 6], "ab"),
        Delta(1, 0, [8], "x", finish_reason="stop"),
        Delta(0, 2, [7], "c"),
    ):
        assert progress.take([event]) == [event]
    again = progress.attempt()
    assert again.resume == [Begun(ids=[5, 6, 7]), Begun(ids=[8], ended=True)]
    assert again.sampling.seed == 7
    assert progress.can_go_on(RECORD)
    for other in ({"digest": "d2"}, {"context_length": 64}):
        assert not progress.can_go_on(RECORD.model_copy(update=other))
    assert progress.num_tokens == 4
    follow = [Delta(0, 3, [9], "d", finish_reason="length"), Done(3, 5)]
    assert progress.take([Started(3, "w2", "d1", seed=7), *follow]) == follow
    assert progress.done


def test_a_gap_and_a_repetition_are_faults_and_are_not_passed_on() -> None:
    for pos in (0, 2):
        progress = taken(STARTED, Delta(0, 0, [5], "a"))
        assert progress.take([Delta(0, pos, [6], "b"), Delta(0, 1, [6], "b")]) == []
        assert progress.fault is not None
        assert progress.fault.code == "worker_lost"
        assert progress.attempt().resume == [Begun(ids=[5]), Begun(ids=[])]
        assert progress.fault is None, "the next worker begins without"


def test_a_failure_ends_what_is_passed_on() -> None:
    progress = taken(STARTED)
    failed = Failed.of(TriremeError("engine_dead", "gone"))
    assert progress.take([Delta(0, 0, [5], "a"), failed, Done(3, 1)]) == [Delta(0, 0, [5], "a")]
    assert progress.fault is not None
    assert progress.fault.code == "engine_dead"
    assert not progress.done


def test_a_prompt_is_told_once_however_it_is_cut() -> None:
    scores = [TokenLogprob(i, str(i), [i], -1.0 * i) for i in range(5)]

    def piece(first: int, last: int) -> Prompt:
        return Prompt(list(range(first, last)), "" if first else "text", scores[first:last])

    progress = taken(STARTED, piece(0, 2))
    assert progress.delivered
    assert progress.attempt().resume is None, "no token was chosen yet"
    assert progress.take([STARTED, piece(0, 1)]) == []
    assert progress.take([piece(1, 4)]) == [Prompt([2, 3], "", scores[2:4])]
    assert progress.take([piece(4, 5)]) == [piece(4, 5)]


def test_tokens_that_are_told_by_their_number_alone_count() -> None:
    progress = taken(STARTED, Delta(0, 0, [], "", generated=12), Delta(0, 0, [], "", generated=30))
    assert progress.tokens == Done(3, 30)
    assert (progress.num_tokens, progress.delivered) == (0, False)
    progress.attempt()
    assert progress.tokens == Done(3, 0), "the next worker begins anew"
