"""The rule of when a post-processor pauses because its model fails."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppworker.domain.circuit import (
    MIN_ASKED_S,
    MODEL_FAULTS,
    Circuit,
    Limits,
    Seen,
    State,
    judge,
    pause_s,
    see,
)
from ppworker.domain.job import MAX_SNOOZE_S, PUT_OFF, Outcome

LIMITS = Limits(failures=10, pause_s=5.0, max_pause_s=300.0)

circuits = st.builds(
    Circuit,
    failures=st.integers(0, 2_000_000),
    trips=st.integers(0, 100),
    reason=st.sampled_from(["", "timeout"]),
    rests_s=st.none() | st.floats(-1e6, 1e6),
)
outcomes = st.builds(
    Outcome,
    kind=st.sampled_from(["answered", "error", "released", "lease_expired"]),
    code=st.sampled_from(
        ["", "crash", "bad_response", "unreadable_input", PUT_OFF, *sorted(MODEL_FAULTS)]
    ),
    retry_after_s=st.none() | st.floats(),
)
batches = st.lists(outcomes, max_size=20).map(see)
jitters = st.floats(0, 1, exclude_max=True)


def failed(n=1, code="unavailable"):
    return see([Outcome(kind="error", code=code, retryable=True)] * n)


ANSWERED = see([Outcome(kind="answered")])


def judged(circuit, *batches, jitter=0.99):
    for seen in batches:
        circuit = judge(circuit, seen, LIMITS, jitter=jitter)
    return circuit


@given(circuits, batches, jitters)
def test_a_verdict_can_be_stored_and_is_never_longer_than_what_may_be_asked_for(c, seen, jitter):
    found = judge(c, seen, LIMITS, jitter=jitter)
    assert 0 <= found.failures <= 2_000_000
    assert 0 <= found.trips <= 1_000_000
    if found.rests_s is not None:
        longest = max(MAX_SNOOZE_S, LIMITS.max_pause_s, c.rests_s or 0.0)
        assert math.isfinite(found.rests_s)
        assert found.rests_s <= longest


@given(circuits, batches, jitters)
def test_nothing_that_began_before_a_pause_ends_or_shortens_it(circuit, seen, jitter):
    if circuit.state is State.OPEN:
        found = judge(circuit, seen, LIMITS, jitter=jitter)
        assert found.rests_s >= circuit.rests_s
        assert found.trips == circuit.trips


@given(circuits)
def test_an_answer_closes_what_is_not_open_and_forgets_everything(circuit):
    if circuit.state is not State.OPEN:
        assert judged(circuit, ANSWERED) == Circuit()


@given(circuits, st.integers(1, 1000), st.sampled_from(sorted(MODEL_FAULTS)))
def test_a_failed_probe_opens_it_again_for_longer(circuit, n, code):
    if circuit.state is State.HALF_OPEN:
        found = judged(circuit, failed(n, code))
        assert found.state is State.OPEN
        assert (found.trips, found.reason) == (circuit.trips + 1, code)


@given(st.lists(st.sampled_from(["crash", "bad_response", "unreadable_input", "model_error"])))
def test_what_an_input_may_have_done_is_not_counted(codes):
    seen = see([Outcome(kind="error", code=code) for code in codes])
    assert judged(Circuit(failures=9), seen) == Circuit(failures=9)
    assert judged(Circuit(trips=1, rests_s=-1.0), seen) == Circuit(trips=1, rests_s=-1.0)


def test_so_many_failures_in_a_row_open_it_whatever_the_batches():
    assert judged(Circuit(), *[failed()] * 9).state is State.CLOSED
    assert judged(Circuit(), *[failed()] * 10).state is State.OPEN
    assert judged(Circuit(), failed(200)).state is State.OPEN
    assert judged(Circuit(), failed(9), ANSWERED, failed(9)).state is State.CLOSED


def test_a_batch_with_an_answer_is_no_failure():
    mixed = see([Outcome(kind="answered"), *[Outcome(kind="error", code="timeout")] * 99])
    assert judged(Circuit(failures=5), mixed) == Circuit()
    assert not mixed.is_trouble


def test_what_a_hanging_model_left_no_time_for_failed_with_the_rest():
    late = [Outcome(kind="error", code=PUT_OFF, retryable=True, retry_after_s=0.0)] * 9
    timeout = Outcome(kind="error", code="timeout", retryable=True)
    hangs = see([timeout, *late])
    assert hangs == Seen(failures=10, reason="timeout")
    assert judged(Circuit(), hangs).state is State.OPEN
    assert not see([Outcome(kind="answered"), timeout, *late]).is_trouble, "it works"
    assert see([Outcome(kind="error", code="crash"), *late]) == Seen(), "an input may have done it"
    assert see(late) == Seen(), "nobody was asked"


def test_pauses_double_up_to_the_cap_and_are_spread():
    longest = [pause_s(n, LIMITS, jitter=1.0) for n in range(1, 10)]
    assert longest == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert [pause_s(n, LIMITS, jitter=0.0) for n in (1, 2)] == [2.5, 5.0]
    assert pause_s(10**9, LIMITS, jitter=0.0) == 150


@pytest.mark.parametrize(
    ("asked", "rests"),
    [
        (30.0, 30.0), (0.0, MIN_ASKED_S), (-5.0, MIN_ASKED_S), (math.nan, MIN_ASKED_S),
        (math.inf, MAX_SNOOZE_S), (1e9, MAX_SNOOZE_S),
    ],
)  # fmt: skip
def test_a_model_is_left_alone_at_once_for_as_long_as_it_asks_within_reason(asked, rests):
    seen = see([Outcome(kind="error", code="overloaded", retry_after_s=asked)])
    assert seen == Seen(reason="overloaded", asked_s=rests)
    found = judged(Circuit(failures=3), seen)
    assert (found.rests_s, found.failures, found.trips) == (rests, 3, 0)


def test_of_several_wishes_the_longest_counts_and_answers_beside_them_change_nothing():
    wishes = [Outcome(kind="error", code="overloaded", retry_after_s=s) for s in (2.0, 7.0, 3.0)]
    found = judged(Circuit(failures=9), see([*wishes, Outcome(kind="answered")]))
    assert (found.rests_s, found.failures) == (7.0, 0)
