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
    """A thread that runs the sweeps, each at its own jittered period."""

    def __init__(self, sweeps: Sequence[Sweep], *, swept: Swept = _nobody) -> None:
        """Prepare to sweep; ``swept`` is told of each run."""
        self._sweeps = sweeps
        self._swept = swept
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeps", daemon=True)

    def start(self) -> None:
        """Begin to sweep."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a sweep in flight is waited for, up to five seconds."""
        self._ended.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        next_at = {s.name: time.monotonic() + _jittered(s.every_s) for s in self._sweeps}
        while not self._ended.wait(max(0.05, min(next_at.values()) - time.monotonic())):
            for sweep in self._sweeps:
                if time.monotonic() >= next_at[sweep.name]:
                    run_once(sweep, swept=self._swept)
                    next_at[sweep.name] = time.monotonic() + _jittered(sweep.every_s)


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
