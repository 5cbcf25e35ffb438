from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.text.stops import Match, StopMatcher

TEXTS = st.text("ab.", max_size=30)
STOPS = st.lists(st.text("ab.", min_size=1, max_size=4), max_size=4)


def run(stops: list[str], pieces: list[str], include_stop: bool = False) -> tuple[str, str | None]:
    """All text shown, and the stop that ended it."""
    matcher = StopMatcher(stops, include_stop=include_stop)
    shown = ""
    for piece in pieces:
        found = matcher.feed(piece)
        if isinstance(found, Match):
            return shown + found.text, found.stop
        shown += found
    return shown + matcher.flush(), None


def test_a_stop_string_is_cut_off() -> None:
    assert run(["STOP"], ["go on STOP here"]) == ("go on ", "STOP")


def test_a_stop_string_can_be_shown() -> None:
    assert run(["STOP"], ["go on STOP here"], include_stop=True) == ("go on STOP", "STOP")


def test_a_stop_string_over_several_pieces_is_never_shown_in_part() -> None:
    matcher = StopMatcher(["STOP"])
    assert matcher.feed("go S") == "go "
    assert matcher.feed("TO") == ""
    assert matcher.feed("P") == Match("", "STOP")


def test_text_that_only_began_like_a_stop_is_given_back() -> None:
    matcher = StopMatcher(["STOP"])
    assert matcher.feed("ST") == ""
    assert matcher.feed("EP") == "STEP"
    assert matcher.feed("S") == ""
    assert matcher.flush() == "S"


def test_the_first_stop_by_position_wins_whatever_the_order_of_the_list() -> None:
    assert run(["world", "lo"], ["hello world"]) == ("hel", "lo")
    assert run(["lo", "world"], ["hello world"]) == ("hel", "lo")


def test_the_first_of_two_occurrences_wins() -> None:
    assert run(["."], ["one. two."]) == ("one", ".")


def test_of_two_stops_that_end_together_the_longer_wins() -> None:
    assert run(["c", "abc"], ["xabc"]) == ("x", "abc")


def test_without_stops_everything_passes() -> None:
    assert run([], ["a", "b"]) == ("ab", None)


@given(TEXTS, STOPS, st.booleans(), st.data())
def test_how_the_text_is_cut_changes_nothing(
    text: str, stops: list[str], include: bool, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert run(stops, pieces, include) == run(stops, list(text), include)


@given(TEXTS, STOPS)
def test_the_result_is_that_of_a_search_in_the_whole_text(text: str, stops: list[str]) -> None:
    found = [
        (at + len(stop), at, stop)
        for stop in stops
        for at in range(len(text))
        if text.startswith(stop, at)
    ]
    expected = (text[: min(found)[1]], min(found)[2]) if found else (text, None)
    assert run(stops, [text]) == expected


@given(TEXTS, STOPS)
def test_no_more_is_held_back_than_could_begin_a_stop(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = matcher.feed(text)
    if isinstance(shown, Match):
        return
    held = text[len(shown) :]
    assert held == "" or any(stop.startswith(held) for stop in stops)
