"""Sets the wall clock of a process wrong by PPWORKER_TEST_CLOCK_S seconds, and no other clock.

On the path of a worker process it is loaded before anything else, as ``sitecustomize``.
"""

import datetime as dt
import os
import time
from typing import Self

OFF_S = float(os.environ.get("PPWORKER_TEST_CLOCK_S", "0"))
_time, _time_ns = time.time, time.time_ns


class _WrongDatetime(dt.datetime):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Self:
        return cls.fromtimestamp(time.time(), tz)


if OFF_S:
    time.time = lambda: _time() + OFF_S
    time.time_ns = lambda: _time_ns() + int(OFF_S * 1e9)
    dt.datetime = _WrongDatetime  # type: ignore[misc]  # that is the point
