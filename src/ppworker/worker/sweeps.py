"""Periodic repair: every worker sweeps, none leads, and each sweep may run any number of times.

Sweeps are never jobs of the queue they rescue.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ppworker.errors import StoreUnavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One repair: what it is called, what it does (returning rows touched), how often at most."""

    name: str
    run: Callable[[], int]
    every_s: float


Swept = Callable[[str, bool, float], None]
"""Told a sweep's name, whether it succeeded, and the seconds it took; must not raise."""


def _nobody(_name: str, _is_ok: bool, _seconds: float) -> None:  # noqa: FBT001  the shape above
    """Nobody asked to be told."""


class Sweeper:
    """A thread that runs the sweeps one by one, each at its own jittered period.

    A sweep that hangs is left to itself after a while, and the others go on beside it.
    """

    def __init__(
        self, sweeps: Sequence[Sweep], *, swept: Swept = _nobody, patience_s: float = 10.0
    ) -> None:
        """Prepare to sweep.

        Args:
            sweeps: what to run.
            swept: told of each run.
            patience_s: seconds for which the others wait for one.
        """
        self._sweeps = sweeps
        self._swept = swept
        self._patience_s = patience_s
        self._running: dict[str, threading.Thread] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeps", daemon=True)

    def start(self) -> None:
        """Begin to sweep."""
        self._thread.start()

    def stop(self, *, wait_s: float = 5.0) -> None:
        """End the thread; waits up to ``wait_s`` seconds for a sweep in flight."""
        self._ended.set()
        self._thread.join(wait_s)

    def _run(self) -> None:
        next_at = {s.name: time.monotonic() + _jittered(s.every_s) for s in self._sweeps}
        while not self._ended.wait(max(0.05, min(next_at.values()) - time.monotonic())):
            for sweep in self._sweeps:
                if time.monotonic() >= next_at[sweep.name] and not self._ended.is_set():
                    self._run_for_a_while(sweep)
                    next_at[sweep.name] = time.monotonic() + _jittered(sweep.every_s)

    def _run_for_a_while(self, sweep: Sweep) -> None:
        before = self._running.get(sweep.name)
        if before is not None and before.is_alive():
            return
        # In a thread of its own: nothing else can leave a call that does not come back.
        running = threading.Thread(
            target=run_once,
            args=(sweep,),
            kwargs={"swept": self._swept},
            name=f"sweep-{sweep.name}",
            daemon=True,
        )
        self._running[sweep.name] = running
        running.start()
        running.join(self._patience_s)
        if running.is_alive():
            log.warning("sweep %s hangs; the others go on without waiting for it", sweep.name)


def run_once(sweep: Sweep, *, swept: Swept = _nobody) -> int:
    """Run a sweep and log what it did; a failure is logged and left to the next time."""
    started, is_ok, touched = time.monotonic(), False, 0
    try:
        touched = sweep.run()
        is_ok = True
    except StoreUnavailable as error:
        log.warning("sweep %s: %s", sweep.name, error)
    except Exception:
        log.exception("sweep %s failed", sweep.name)
    swept(sweep.name, is_ok, time.monotonic() - started)
    if touched:
        log.debug("sweep %s touched %d rows", sweep.name, touched)
    return touched


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311  only spreads
