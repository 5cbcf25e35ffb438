from __future__ import annotations

from protocol.generation import CallPiece, Delta
from worker.engine.protocol import RawLogprob, StepOutput
from worker.text.choice import Choice, TextOptions, readable
from worker.text.formats import REASONING, TOOL_CALLS
from worker.text.response import ResponseFormat
from worker.text.words import END_ID, WordTokenizer

WORDS = WordTokenizer()


def outputs(text: str, finish: str | None = "length") -> list[StepOutput]:
    """One output a byte of `text`."""
    ids = list(text.encode())
    ends = [None] * (len(ids) - 1) + [finish]
    return [
        StepOutput(0, pos, [token_id], finish=end)  # type: ignore[arg-type]
        for pos, (token_id, end) in enumerate(zip(ids, ends, strict=True))
    ]


def run(choice: Choice, steps: list[StepOutput]) -> list[Delta]:
    return [delta for step in steps if (delta := choice.feed(step)) is not None]


def choice(**options: object) -> Choice:
    return Choice(0, WORDS, TextOptions(**options))  # type: ignore[arg-type]


def test_every_token_is_a_delta_without_a_gap() -> None:
    deltas = run(choice(), outputs("abc"))
    assert [(d.pos, d.text, d.finish_reason) for d in deltas] == [
        (0, "a", None),
        (1, "b", None),
        (2, "c", "length"),
    ]


def test_the_interval_joins_tokens_but_first_and_last_come_at_once() -> None:
    deltas = run(choice(interval=3), outputs("abcdef"))
    assert [(d.pos, d.text) for d in deltas] == [(0, "a"), (1, "bcd"), (4, "ef")]


def test_a_stop_string_ends_the_choice_and_later_output_is_dropped() -> None:
    made = choice(stops=("cd",))
    deltas = run(made, outputs("abcdef"))
    assert "".join(d.text for d in deltas) == "ab"
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", "cd")
    assert made.stopped_by_text
    assert made.num_tokens == 4 == sum(len(d.ids) for d in deltas)


def test_a_stop_string_inside_a_step_of_several_tokens_counts_up_to_its_end() -> None:
    made = choice(stops=("b",))
    (delta,) = run(made, [StepOutput(0, 0, list(b"abc"))])
    assert (delta.text, delta.ids, delta.finish_reason) == ("a", list(b"ab"), "stop")


def test_a_stop_string_before_min_tokens_is_text() -> None:
    deltas = run(choice(stops=("b",), min_tokens=4), outputs("abxxb!"))
    assert "".join(d.text for d in deltas) == "abxx"
    assert deltas[-1].stop_reason == "b"


def test_held_back_text_is_given_at_the_end() -> None:
    deltas = run(choice(stops=("bcd",)), outputs("abc"))
    assert [d.text for d in deltas] == ["a", "", "bc"]


def test_the_stop_token_is_counted_but_not_shown() -> None:
    made = choice(skip_special_tokens=False)
    (delta,) = run(made, [StepOutput(0, 0, [97, END_ID], finish="stop", stop_token=END_ID)])
    assert (delta.text, delta.ids, delta.stop_reason) == ("a", [97, END_ID], None)
    assert made.num_tokens == 2


def test_a_requested_stop_token_is_the_reason_and_can_be_shown() -> None:
    step = StepOutput(0, 0, [97, 98], finish="stop", stop_token=98)
    (delta,) = run(choice(reported_stop_ids=frozenset({98})), [step])
    assert (delta.text, delta.stop_reason) == ("a", 98)
    (shown,) = run(choice(reported_stop_ids=frozenset({98}), include_stop=True), [step])
    assert shown.text == "ab"


def test_half_a_character_at_the_end_is_flushed() -> None:
    deltas = run(choice(), [StepOutput(0, 0, list("é".encode())[:1], finish="length")])
    assert deltas[0].text == "\ufffd"


def test_log_probabilities_come_with_their_tokens() -> None:
    raw = RawLogprob(97, -0.5, [(97, -0.5), (98, float("-inf"))])
    (delta,) = run(choice(), [StepOutput(0, 0, [97], [raw], finish="length")])
    assert delta.logprobs is not None
    (one,) = delta.logprobs
    assert (one.token, one.bytes, one.logprob) == ("a", [97], -0.5)
    assert [(top.token, top.logprob) for top in one.top] == [("a", -0.5), ("b", -9999.0)]


def test_the_first_prompt_token_has_no_log_probability() -> None:
    assert readable(RawLogprob(97, None), WORDS).logprob is None


def reading(*, tools: bool = True, parallel: bool = True) -> object:
    fields = {**REASONING["think"], **TOOL_CALLS["hermes"]}
    form = ResponseFormat(fields, {}, names=("hermes", "think"))
    offered = [{"type": "function", "function": {"name": "f"}}] if tools else None
    return form.reading("", offered, parallel=parallel)


CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


def test_reasoning_and_calls_are_told_from_the_text() -> None:
    made = choice(reading=reading())
    deltas = run(made, outputs(f"<think>ab</think>Yes. {CALL}"))
    assert "".join(d.reasoning for d in deltas) == "ab"
    assert "".join(d.text for d in deltas) == "Yes."
    calls = [piece for d in deltas for piece in d.calls or ()]
    assert calls == [CallPiece(0, "f", ""), CallPiece(0, None, "{}")]
    assert made.reasoning_tokens == len("ab</think>") + 1
    assert made.finish == "length"


def test_the_first_call_ends_a_choice_that_wants_one() -> None:
    made = choice(reading=reading(parallel=False))
    deltas = run(made, outputs(f"{CALL}{CALL} and on", "stop"))
    assert [piece.name for d in deltas for piece in d.calls or ()] == ["f", None]
    assert (made.finish, made.stopped_by_text) == ("stop", True)
    assert made.num_tokens == len(CALL) + 1  # the pattern ends where something else begins


def test_a_call_that_a_stop_string_cuts_is_text() -> None:
    deltas = run(choice(reading=reading(), stops=("arg",)), outputs(CALL))
    assert "".join(d.text for d in deltas) == '<tool_call>{"name": "f", "'
    assert deltas[-1].finish_reason == "stop"
