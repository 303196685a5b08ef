"""Back-off between attempts."""

from hypothesis import given
from hypothesis import strategies as st

from ppworker.domain.retry import BASE_S, CAP_S, FACTOR, backoff_s


@given(st.integers(-5, 10**9), st.floats(0, 1, exclude_max=True))
def test_the_wait_stays_within_bounds(attempt, jitter):
    assert BASE_S / 2 <= backoff_s(attempt, jitter=jitter) <= CAP_S


@given(st.integers(1, 100), st.floats(0, 1, exclude_max=True))
def test_the_wait_never_shrinks_with_attempts(attempt, jitter):
    assert backoff_s(attempt, jitter=jitter) <= backoff_s(attempt + 1, jitter=jitter)


def test_the_wait_grows_by_the_factor():
    assert backoff_s(2, jitter=0) == backoff_s(1, jitter=0) * FACTOR


def test_jitter_spreads_the_wait_at_the_cap_too():
    assert backoff_s(50, jitter=0) == CAP_S / 2
    assert backoff_s(50, jitter=0.5) == CAP_S * 0.75
