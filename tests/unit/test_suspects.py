"""Who is suspected when a worker dies with a batch in its own process, and who is blamed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppworker.domain.job import MAX_CRASHES, PUT_OFF, Attempt, Outcome, Status, decide

DIED = Outcome(kind="lease_expired", code="lease_expired", message="the worker died")
HUNG = Outcome(kind="lease_expired", code="deadline", message="the model hung")
CRASHED = Outcome(kind="error", code="crash", message="its process died", retryable=True)


@given(
    attempts=st.integers(1, 10),
    extra=st.integers(0, 5),
    crashes=st.integers(0, MAX_CRASHES - 1),
    hangs=st.booleans(),
)
def test_whoever_was_in_the_model_is_suspected_and_failed_for_nothing(
    attempts: int, extra: int, crashes: int, hangs: bool
) -> None:
    attempt = Attempt(
        attempts=attempts, max_attempts=attempts + extra, crash_count=crashes, in_model=True
    )
    found = decide(attempt, HUNG if hangs else DIED, jitter=0.5)
    assert (found.to, found.is_suspect) == (Status.PENDING, True)
    assert found.attempts == min(attempts, attempt.max_attempts - 1), "it can run again"
    assert found.cause == ("rescued" if extra else "suspected"), "its last attempt is given back"
    assert found.crash_count == crashes, "a death among others is nobody's"
    assert found.reason == ("deadline" if hangs else "lease_expired")


def test_a_death_outside_the_model_suspects_nobody() -> None:
    found = decide(Attempt(attempts=1, max_attempts=3), DIED, jitter=0)
    assert (found.to, found.is_suspect, found.cause) == (Status.PENDING, False, "rescued")
    last = decide(Attempt(attempts=3, max_attempts=3), DIED, jitter=0)
    assert (last.to, last.cause) == (Status.FAILED, "exhausted")


@given(max_attempts=st.integers(1, 10))
def test_poison_is_put_away_after_three_deaths_of_its_own_or_its_last_attempt(
    max_attempts: int,
) -> None:
    attempt = Attempt(attempts=1, max_attempts=max_attempts, in_model=True)
    found = decide(attempt, DIED, jitter=0)
    deaths = 0
    while found.to is Status.PENDING:
        assert found.is_suspect
        attempt = Attempt(
            attempts=found.attempts + 1,
            max_attempts=max_attempts,
            crash_count=found.crash_count,
            is_suspect=True,
        )
        found = decide(attempt, CRASHED, jitter=0)
        deaths += 1
    assert found.reason == "crash"
    assert deaths == found.crash_count == max(1, min(MAX_CRASHES, max_attempts - 1))


@pytest.mark.parametrize("kind", ["answered", "error"])
def test_a_suspect_that_answers_is_none_any_more(kind: str) -> None:
    attempt = Attempt(attempts=1, max_attempts=3, is_suspect=True)
    outcome = Outcome(kind=kind, code="model_error", retryable=True)  # type: ignore[arg-type]
    assert not decide(attempt, outcome, jitter=0).is_suspect


@pytest.mark.parametrize(
    "code", ["unavailable", "overloaded", "timeout", "auth", "file_missing", "lease_lost"]
)
@pytest.mark.parametrize("is_suspect", [True, False])
def test_what_proves_nothing_leaves_a_suspect_one_and_makes_none(
    code: str, is_suspect: bool
) -> None:
    attempt = Attempt(attempts=1, max_attempts=3, is_suspect=is_suspect)
    outcome = Outcome(kind="error", code=code, retryable=True)
    found = decide(attempt, outcome, jitter=0)
    assert (found.to, found.is_suspect) == (Status.PENDING, is_suspect)


def test_a_suspect_that_was_put_off_stays_one() -> None:
    attempt = Attempt(attempts=3, max_attempts=3, is_suspect=True)
    outcome = Outcome(kind="error", code=PUT_OFF, retryable=True, retry_after_s=0.0)
    found = decide(attempt, outcome, jitter=0)
    assert (found.to, found.is_suspect, found.attempts) == (Status.PENDING, True, 2)


@pytest.mark.parametrize("kind", ["released", "lease_expired"])
def test_a_suspect_that_was_not_asked_stays_one(kind: str) -> None:
    attempt = Attempt(attempts=1, max_attempts=3, is_suspect=True)
    assert decide(attempt, Outcome(kind=kind), jitter=0).is_suspect  # type: ignore[arg-type]


def test_a_job_whose_own_process_died_of_it_is_a_suspect_next() -> None:
    found = decide(Attempt(attempts=1, max_attempts=3), CRASHED, jitter=0)
    assert (found.is_suspect, found.crash_count) == (True, 1)
