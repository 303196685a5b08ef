"""Who is blamed when a worker dies with a batch in its own process."""

import math
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppworker.domain.job import MAX_CRASHES, Attempt, Outcome, Status, decide
from ppworker.domain.suspects import blame, halves

DIED = Outcome(kind="lease_expired", code="lease_expired", message="the worker died")
HUNG = Outcome(kind="lease_expired", code="deadline", message="the model hung")


@given(st.lists(st.integers(), unique=True))
def test_halves_hold_every_member_once_and_are_smaller(members: list[int]) -> None:
    groups = halves(members)
    assert [each for group in groups for each in group] == members
    assert all(groups)
    if len(members) > 1:
        assert max(len(group) for group in groups) == math.ceil(len(members) / 2)


def test_only_a_suspect_that_ran_alone_is_blamed() -> None:
    assert blame(in_model=0, is_suspect=True) == "none"
    assert blame(in_model=1, is_suspect=False) == "charged"
    assert blame(in_model=9, is_suspect=True) == "refunded"
    assert blame(in_model=1, is_suspect=True) == "alone"


@given(
    size=st.integers(1, 200),
    deadly=st.sets(st.integers(0, 199), max_size=3),
    max_attempts=st.integers(1, 10),
    hangs=st.booleans(),
)
def test_the_deadly_are_found_and_nobody_else_pays_more_than_one_attempt(
    size: int, deadly: set[int], max_attempts: int, hangs: bool
) -> None:
    outcome = HUNG if hangs else DIED
    attempts, crashes = dict.fromkeys(range(size), 0), dict.fromkeys(range(size), 0)
    ended: dict[int, str] = {}
    charged: dict[int, int] = dict.fromkeys(range(size), 0)
    deaths, waiting = 0, deque([(list(range(size)), False)])
    while waiting:
        group, are_suspects = waiting.popleft()
        for job in group:
            attempts[job] += 1
        if deadly.isdisjoint(group):
            ended |= dict.fromkeys(group, "answered")
            continue
        deaths += 1
        again = []
        for job in group:
            before = attempts[job]
            attempt = Attempt(
                attempts=before,
                max_attempts=max_attempts,
                crash_count=crashes[job],
                in_model=len(group),
                is_suspect=are_suspects,
            )
            found = decide(attempt, outcome, jitter=0.5)
            attempts[job], crashes[job] = found.attempts, found.crash_count
            if found.to is Status.FAILED:
                assert len(group) == 1
                ended[job] = found.reason
                assert (found.cause, found.reason) == ("crashed", "deadline" if hangs else "crash")
                assert f"{crashes[job]} x" in found.error
            else:
                assert found.is_suspect
                assert found.attempts < max_attempts, "it can run again"
                charged[job] += found.attempts - (before - 1)
                again.append(job)
        waiting.extend((list(part), True) for part in halves(again))
    present = {job for job in deadly if job < size}
    for job in range(size):
        if job in present:
            assert ended[job] == ("deadline" if hangs else "crash")
            assert 1 <= crashes[job] <= MAX_CRASHES
        else:
            assert ended[job] == "answered"
            assert charged[job] <= 1
            assert crashes[job] == 0
    assert deaths <= len(present) * (math.ceil(math.log2(size)) + 1 + MAX_CRASHES)


@pytest.mark.parametrize("kind", ["answered", "error"])
def test_a_suspect_that_answers_is_none_any_more(kind: str) -> None:
    attempt = Attempt(attempts=1, max_attempts=3, is_suspect=True)
    outcome = Outcome(kind=kind, code="timeout", retryable=True)  # type: ignore[arg-type]
    assert not decide(attempt, outcome, jitter=0).is_suspect


@pytest.mark.parametrize("kind", ["released", "lease_expired"])
def test_a_suspect_that_was_not_asked_stays_one(kind: str) -> None:
    attempt = Attempt(attempts=1, max_attempts=3, is_suspect=True)
    assert decide(attempt, Outcome(kind=kind), jitter=0).is_suspect  # type: ignore[arg-type]


def test_a_job_whose_own_process_died_of_it_runs_alone_next() -> None:
    attempt = Attempt(attempts=1, max_attempts=3)
    outcome = Outcome(kind="error", code="crash", retryable=True)
    found = decide(attempt, outcome, jitter=0)
    assert (found.is_suspect, found.crash_count) == (True, 1)
