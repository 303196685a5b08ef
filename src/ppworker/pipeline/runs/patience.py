"""Waits for a PostgreSQL that is away, so that a restart of it costs no attempt of any job."""

import random
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from ppworker.errors import CommitUnknown, StoreUnavailable

T_co = TypeVar("T_co", covariant=True)

_PATIENCE_S = 600.0
"""How long an answer waits; its fence decides whether it still counts."""
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 5.0


class Step(Protocol[T_co]):
    """Something to be done in the database, told whether an earlier COMMIT of it is in doubt."""

    def __call__(self, *, in_doubt: bool) -> T_co: ...


def _never() -> bool:
    return False


def until_it_answers(step: Step[T_co], *, give_up: Callable[[], bool] = _never) -> T_co:
    """Do the step, again and again while PostgreSQL is away and ``give_up`` is not true.

    Raises:
        StoreUnavailable: it stayed away for ten minutes, or until ``give_up``.
    """
    last_at = time.monotonic() + _PATIENCE_S
    wait_s = _FIRST_WAIT_S
    in_doubt = False
    while True:
        try:
            return step(in_doubt=in_doubt)
        except StoreUnavailable as error:
            in_doubt = in_doubt or isinstance(error, CommitUnknown)
            if time.monotonic() > last_at or give_up():
                raise
        time.sleep(wait_s * random.uniform(0.5, 1))  # noqa: S311  only spreads
        wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
