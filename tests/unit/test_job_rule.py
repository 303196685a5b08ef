"""The rule of what becomes of a job."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppworker.domain.job import (
    EDGES,
    MAX_CRASHES,
    MAX_FREE_TIMEOUTS,
    MAX_SNOOZE_S,
    MAX_SNOOZES,
    TERMINAL,
    Attempt,
    Outcome,
    Status,
    decide,
)

attempts = st.builds(
    Attempt,
    attempts=st.integers(0, 10),
    max_attempts=st.integers(1, 10),
    crash_count=st.integers(0, 5),
    rerun_requested=st.booleans(),
    input_changed=st.booleans(),
)
outcomes = st.builds(
    Outcome,
    kind=st.sampled_from(["answered", "error", "released", "lease_expired"]),
    code=st.sampled_from(["", "crash", "timeout", "overloaded"]),
    message=st.just("why"),
    retryable=st.booleans(),
    retry_after_s=st.none() | st.floats(),
)
jitters = st.floats(0, 1, exclude_max=True)


@given(attempts, outcomes, jitters)
def test_a_decision_never_leaves_the_edges(attempt, outcome, jitter):
    transition = decide(attempt, outcome, jitter=jitter)
    assert transition.cause in EDGES[Status.PROCESSING, transition.to]


@given(attempts, outcomes, jitters)
def test_a_decision_can_be_stored(attempt, outcome, jitter):
    transition = decide(attempt, outcome, jitter=jitter)
    assert math.isfinite(transition.delay_s)
    assert 0 <= transition.delay_s <= MAX_SNOOZE_S
    assert 0 <= transition.attempts <= attempt.attempts
    assert transition.delay_s == 0 or transition.to is Status.PENDING


@given(attempts, outcomes, jitters)
def test_the_answer_is_kept_on_completion_only(attempt, outcome, jitter):
    transition = decide(attempt, outcome, jitter=jitter)
    assert transition.keep_result == (transition.to is Status.COMPLETED)


def test_only_a_retry_leaves_a_terminal_status():
    leaving = {edge: causes for edge, causes in EDGES.items() if edge[0] in TERMINAL}
    assert leaving == {(Status.FAILED, Status.PENDING): ("retried",)}


def test_an_answer_completes():
    transition = decide(Attempt(attempts=3, max_attempts=3), Outcome(kind="answered"), jitter=0)
    assert (transition.to, transition.cause) == (Status.COMPLETED, "finished")


@pytest.mark.parametrize("flag", ["rerun_requested", "input_changed"])
def test_a_stale_answer_is_dropped_and_gets_a_fresh_budget(flag):
    attempt = Attempt(attempts=3, max_attempts=3, crash_count=2, **{flag: True})
    transition = decide(attempt, Outcome(kind="answered"), jitter=0)
    assert (transition.to, transition.attempts, transition.crash_count, transition.keep_result) == (
        Status.PENDING,
        0,
        0,
        False,
    )


def test_a_graceful_stop_refunds_the_attempt():
    transition = decide(Attempt(attempts=1, max_attempts=3), Outcome(kind="released"), jitter=0)
    assert (transition.to, transition.attempts, transition.delay_s) == (Status.PENDING, 0, 0)


def test_a_snooze_refunds_the_attempt_and_waits_as_asked():
    outcome = Outcome(kind="error", code="overloaded", retryable=True, retry_after_s=7)
    transition = decide(Attempt(attempts=3, max_attempts=3), outcome, jitter=0.9)
    assert (transition.cause, transition.attempts, transition.delay_s) == ("snoozed", 2, 7)


def test_a_transient_error_waits_until_attempts_are_exhausted():
    outcome = Outcome(kind="error", code="timeout", message="slow", retryable=True)
    again = decide(Attempt(attempts=2, max_attempts=3), outcome, jitter=0)
    assert (again.to, again.cause, again.reason, again.error) == (
        Status.PENDING,
        "transient_error",
        "timeout",
        "slow",
    )
    assert again.delay_s > 0
    over = decide(Attempt(attempts=3, max_attempts=3), outcome, jitter=0)
    assert (over.to, over.cause, over.attempts) == (Status.FAILED, "exhausted", 3)


def test_a_permanent_error_fails_at_once():
    outcome = Outcome(kind="error", code="unreadable_input")
    transition = decide(Attempt(attempts=1, max_attempts=3), outcome, jitter=0)
    assert (transition.to, transition.cause, transition.reason) == (
        Status.FAILED,
        "permanent_error",
        "unreadable_input",
    )


def test_repeated_crashes_fail_whatever_attempts_are_left():
    outcome = Outcome(kind="error", code="crash", retryable=True)
    attempt = Attempt(attempts=1, max_attempts=10, crash_count=MAX_CRASHES - 1)
    transition = decide(attempt, outcome, jitter=0)
    assert (transition.to, transition.cause, transition.crash_count) == (
        Status.FAILED,
        "crashed",
        MAX_CRASHES,
    )


def test_an_expired_lease_keeps_its_attempt_counted():
    outcome = Outcome(kind="lease_expired")
    transition = decide(Attempt(attempts=1, max_attempts=3), outcome, jitter=0)
    assert (transition.to, transition.cause, transition.attempts) == (Status.PENDING, "rescued", 1)


def test_a_wait_that_the_model_asks_for_costs_no_attempt_until_it_asked_for_very_many():
    asked = Outcome(kind="error", code="overloaded", retryable=True, retry_after_s=7.0)
    early = decide(Attempt(attempts=3, max_attempts=3), asked, jitter=0)
    assert (early.to, early.cause, early.attempts, early.snoozes) == (
        Status.PENDING, "snoozed", 2, 1,
    )  # fmt: skip
    late = decide(Attempt(attempts=2, max_attempts=3, snoozes=MAX_SNOOZES), asked, jitter=0)
    assert (late.to, late.cause, late.attempts, late.delay_s) == (
        Status.PENDING, "transient_error", 2, 7.0,
    )  # fmt: skip
    last = decide(Attempt(attempts=3, max_attempts=3, snoozes=MAX_SNOOZES), asked, jitter=0)
    assert (last.to, last.cause, last.reason) == (Status.FAILED, "exhausted", "overloaded")


@given(attempts)
def test_a_model_that_asks_for_ever_ends_the_job(attempt):
    asked = Outcome(kind="error", code="overloaded", retryable=True, retry_after_s=1.0)
    attempt.snoozes = MAX_SNOOZES - 2
    attempt.attempts, attempt.rerun_requested, attempt.input_changed = 1, False, False
    transition = decide(attempt, asked, jitter=0)
    for _ in range(1 + attempt.max_attempts):
        attempt.attempts, attempt.snoozes = transition.attempts + 1, transition.snoozes
        transition = decide(attempt, asked, jitter=0)
    assert transition.to is Status.FAILED


@pytest.mark.parametrize("retryable", [True, False])
def test_a_probe_that_the_model_failed_costs_no_attempt_and_no_wait(retryable):
    failed = Outcome(kind="error", code="auth", retryable=retryable, is_free=True)
    found = decide(Attempt(attempts=3, max_attempts=3, snoozes=5), failed, jitter=0)
    assert (found.to, found.cause, found.attempts, found.snoozes) == (
        Status.PENDING, "snoozed", 2, 6,
    )  # fmt: skip


def test_a_probe_whose_input_may_hang_is_free_ten_times():
    slow = Outcome(kind="error", code="timeout", retryable=True, is_free=True)
    free = Attempt(attempts=1, max_attempts=3, snoozes=MAX_FREE_TIMEOUTS - 1)
    found = decide(free, slow, jitter=0)
    assert (found.cause, found.attempts, found.snoozes) == ("snoozed", 0, MAX_FREE_TIMEOUTS)
    paid = Attempt(attempts=1, max_attempts=3, snoozes=MAX_FREE_TIMEOUTS)
    found = decide(paid, slow, jitter=0)
    assert (found.cause, found.attempts, found.snoozes) == (
        "transient_error", 1, MAX_FREE_TIMEOUTS,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "most"),
    [("timeout", MAX_FREE_TIMEOUTS), ("unavailable", MAX_SNOOZES), ("put_off", MAX_SNOOZES)],
)
def test_what_costs_nothing_ends_all_the_same(code, most):
    wait_s = 0.0 if code == "put_off" else None
    outcome = Outcome(
        kind="error", code=code, retryable=True, retry_after_s=wait_s, is_free=wait_s is None
    )
    found, ends = None, 0
    while found is None or found.to is Status.PENDING:
        before = (found.attempts, found.snoozes) if found else (0, 0)
        attempt = Attempt(attempts=before[0] + 1, max_attempts=3, snoozes=before[1])
        found = decide(attempt, outcome, jitter=0)
        ends += 1
        assert ends < 2000
    assert (ends, found.cause, found.attempts) == (most + 3, "exhausted", 3)
