"""Works on long operations in one thread of a worker process, a time slice at a time."""

import logging
import random
import threading
import time
from collections.abc import Callable

from ppworker.errors import StoreUnavailable

log = logging.getLogger(__name__)

_LONGEST_BACKOFF_S = 5.0


class OperationThread:
    """Polls for operations that are due; stops between two chunks.

    Args:
        run: works on one due operation until it ends or its argument says that it is time to give
            it back; answers whether there was one.
        poll_s: seconds between polls while nothing is due, jittered by half.
        slice_s: seconds after which another operation that waits has its turn.
        stopping: set once the process shall end; the operation in hand is then given back.
    """

    def __init__(
        self,
        run: Callable[[Callable[[], bool]], bool],
        *,
        poll_s: float,
        slice_s: float,
        stopping: threading.Event,
    ) -> None:
        self._run_one = run
        self._poll_s = poll_s
        self._slice_s = slice_s
        self._ended = stopping
        self._thread = threading.Thread(target=self._run, name="operations", daemon=True)

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def stop(self, *, wait_s: float = 5.0) -> None:
        """End the thread; waits up to ``wait_s`` seconds for the present chunk."""
        self._ended.set()
        self._thread.join(wait_s)

    def _run(self) -> None:
        failures = 0
        while not self._ended.is_set():
            slice_ends = time.monotonic() + self._slice_s
            is_busy = False
            try:
                is_busy = self._run_one(lambda: self._is_time(slice_ends))  # noqa: B023  used at once
                failures = 0
            except StoreUnavailable as error:
                failures += 1
                if failures == 1:
                    log.warning("operations wait for the database: %s", error)
            except Exception:
                failures += 1
                log.exception("an operation's turn failed")
            if not is_busy:
                self._ended.wait(self._wait_s(failures))

    def _is_time(self, slice_ends: float) -> bool:
        return self._ended.is_set() or time.monotonic() >= slice_ends

    def _wait_s(self, failures: int) -> float:
        wait_s = min(self._poll_s * 2.0 ** min(failures, 8), max(_LONGEST_BACKOFF_S, self._poll_s))
        return wait_s * random.uniform(0.5, 1.5)  # noqa: S311  only spreads
