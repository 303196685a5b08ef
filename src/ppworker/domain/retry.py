"""Decides how long a job waits before its next attempt."""

BASE_S = 2.0
"""Wait before the second attempt, in seconds, without jitter."""
FACTOR = 3.0
"""Growth of the wait from one attempt to the next."""
CAP_S = 600.0
"""Longest wait, in seconds."""


def backoff_s(attempt: int, *, jitter: float) -> float:
    """Wait after the given attempt failed, in seconds.

    Exponential, capped, and always jittered (50 to 100 % of the full wait, at the cap too), so
    that jobs which failed together do not come back together.

    Args:
        attempt: attempts started so far, at least 1.
        jitter: a number in [0, 1).
    """
    exponent = min(max(attempt, 1) - 1, 20)
    full = min(BASE_S * FACTOR**exponent, CAP_S)
    return full * (0.5 + jitter / 2)
