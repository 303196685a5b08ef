"""Questions with a limit: to whoever may be away, and whose answer nobody can wait for."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLateError
from typing import Generic, TypeVar

T = TypeVar("T")

_FAILURE_S = 1.0
"""Seconds for which a failure is remembered at most."""


class Bounded(Generic[T]):
    """Asks in a thread of its own, one question at a time, and remembers the answer a while.

    However many ask at once, one question is under way; one that never returns costs a thread,
    and whoever asks after its limit nothing: else many askers would queue for the same silence.
    """

    def __init__(self, ask: Callable[[], T], *, limit_s: float, keep_s: float = 0.0) -> None:
        """Ask ``ask`` for at most ``limit_s`` seconds, again after ``keep_s``."""
        self._ask = ask
        self._limit_s = limit_s
        self._keep_s = keep_s
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bounded")
        self._lock = threading.Lock()
        self._asked: Future[T] | None = None
        self._until = 0.0
        self._kept: tuple[float, T | None] | None = None

    def __call__(self) -> T | None:
        """The answer; None when it failed or was not there in time."""
        with self._lock:
            kept = self._kept
            if kept is not None and time.monotonic() < kept[0]:
                return kept[1]
            asked = self._asked
            if asked is None:
                asked = self._asked = self._pool.submit(self._ask)
                self._until = time.monotonic() + self._limit_s
            left_s = max(0.0, self._until - time.monotonic())
        answer: T | None
        try:
            answer = asked.result(left_s)
        except TooLateError:
            if not asked.done():  # still under way: who comes next waits for the same question
                return None
            answer = None
        except Exception:  # noqa: BLE001  whoever is away may say it in any way
            answer = None
        with self._lock:
            if self._asked is asked:
                self._asked = None
                # A failure is asked about again sooner: whoever was away may be back.
                keep_s = self._keep_s if answer is not None else min(self._keep_s, _FAILURE_S)
                self._kept = (time.monotonic() + keep_s, answer)
        return answer
