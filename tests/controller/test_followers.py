"""Which gateways follow, with times passed in."""

from __future__ import annotations

from controller.followers import KEPT_POLLS, MAX_FOLLOWERS, POLL_S, RETURN_S, Followers

LATER = 100.0


def test_nobody_follows_but_a_controller_that_just_started_cannot_know() -> None:
    followers = Followers(0)
    assert not followers.all_saw(1, RETURN_S / 2)
    assert followers.all_saw(1, RETURN_S)


def test_a_version_is_seen_when_everybody_asks_for_what_follows_it() -> None:
    followers = Followers(0)
    followers.heard("a", 7, POLL_S, LATER)
    followers.heard("b", 5, POLL_S, LATER)
    assert not followers.all_saw(7, LATER)
    followers.heard("b", 7, POLL_S, LATER)
    assert followers.all_saw(7, LATER)
    assert not followers.all_saw(8, LATER)


def test_one_that_starts_anew_has_seen_nothing() -> None:
    followers = Followers(0)
    followers.heard("a", 7, POLL_S, LATER)
    followers.heard("a", 0, 0, LATER)
    assert not followers.all_saw(7, LATER)


def test_one_that_is_silent_for_two_polls_is_forgotten() -> None:
    followers = Followers(0)
    followers.heard("a", 1, POLL_S, LATER)
    assert not followers.all_saw(2, LATER + KEPT_POLLS * POLL_S - 0.1)
    assert followers.all_saw(2, LATER + KEPT_POLLS * POLL_S)
    assert followers.count(LATER + KEPT_POLLS * POLL_S) == 0


def test_one_whose_poll_broke_off_has_the_time_to_come_back() -> None:
    followers = Followers(0)
    followers.heard("a", 1, POLL_S, LATER)
    followers.broke_off("a", LATER)
    assert not followers.all_saw(2, LATER + RETURN_S / 2)
    assert followers.all_saw(2, LATER + RETURN_S)


def test_one_that_says_goodbye_is_forgotten_at_once() -> None:
    followers = Followers(0)
    followers.heard("a", 1, POLL_S, LATER)
    followers.leave("a")
    assert followers.all_saw(2, LATER)


def test_their_number_is_bounded() -> None:
    followers = Followers(0)
    for number in range(MAX_FOLLOWERS + 10):
        followers.heard(str(number), 1, POLL_S, LATER)
    assert followers.count(LATER) == MAX_FOLLOWERS
