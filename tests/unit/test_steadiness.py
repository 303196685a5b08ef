"""When a lease that has run out may be called abandoned."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppworker.worker.steadiness import Steadiness

LEASE_S = 30.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def steadiness(clock: Clock) -> Steadiness:
    return Steadiness(LEASE_S, clock=clock)


def beat(steadiness: Steadiness, clock: Clock, seconds: float, *, answered: bool = True) -> None:
    """Heartbeats each ten seconds for so long, the last one now."""
    for _ in range(int(seconds / 10)):
        clock.now += 10
        steadiness.note(answered=answered)


def test_it_takes_a_whole_lease_of_answers(steadiness: Steadiness, clock: Clock) -> None:
    assert not steadiness.lasts_a_lease()
    steadiness.note(answered=True)
    beat(steadiness, clock, 20)
    assert not steadiness.lasts_a_lease()
    beat(steadiness, clock, 10)
    assert steadiness.lasts_a_lease()


def test_it_begins_anew_when_the_database_was_away(steadiness: Steadiness, clock: Clock) -> None:
    steadiness.note(answered=True)
    beat(steadiness, clock, 100)
    beat(steadiness, clock, 40, answered=False)
    assert not steadiness.lasts_a_lease()
    beat(steadiness, clock, 30)  # the first of these is the first answer
    assert not steadiness.lasts_a_lease()
    beat(steadiness, clock, 10)
    assert steadiness.lasts_a_lease()


def test_a_process_that_stood_still_has_seen_nothing(steadiness: Steadiness, clock: Clock) -> None:
    steadiness.note(answered=True)
    beat(steadiness, clock, 100)
    clock.now += 16
    assert not steadiness.lasts_a_lease(), "more than half a lease without an answer"
    steadiness.note(answered=True)
    assert not steadiness.lasts_a_lease(), "nor does one answer after it heal that"


@given(st.lists(st.tuples(st.floats(0.1, 40), st.booleans()), max_size=60))
def test_no_lease_of_a_living_worker_can_have_run_out_when_it_says_yes(
    beats: list[tuple[float, bool]],
) -> None:
    """Whenever it says yes, half a lease without an answer lies a lease back or more."""
    clock = Clock()
    steadiness = Steadiness(LEASE_S, clock=clock)
    answers: list[float] = []
    failures: list[float] = []
    for wait_s, answered in beats:
        clock.now += wait_s
        if steadiness.lasts_a_lease():
            window = [at for at in answers if at >= clock.now - LEASE_S]
            edges = [max(clock.now - LEASE_S, answers[0]), *window, clock.now]
            assert all(later - earlier <= LEASE_S / 2 for earlier, later in pairwise(edges))
            assert not any(at >= clock.now - LEASE_S for at in failures)
        steadiness.note(answered=answered)
        (answers if answered else failures).append(clock.now)
