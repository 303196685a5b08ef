"""Keeps a number of worker processes running: starts them, restarts dead ones, stops them all.

It does nothing else, so that nothing can kill it: no database, no redis, no models.
"""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event, Thread

from ppworker.worker.parent import SUPERVISOR_PID
from ppworker.worker.signals import Signals

log = logging.getLogger(__name__)

CONFIGURATION_ERROR = 2
"""Exit code of a child that cannot start as configured; starting it again would not help."""

_LOOK_S = 0.1
_SHORT_LIFE_S = 5.0
"""A child that dies sooner is started again later each time."""
_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 30.0
_KILL_AFTER_S = 5.0
"""Seconds past the grace after which a child that will not stop is killed."""


@dataclass(slots=True)
class _Child:
    index: int
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    short_lives: int = 0


def supervise(
    argv_for_child: Callable[[int], Sequence[str]],
    processes: int,
    *,
    grace_s: float,
    ticks: Sequence[Callable[[], None]] = (),
    tick_s: float = 1.0,
) -> int:
    """Run ``processes`` children until SIGTERM or SIGINT; to be called in the main thread.

    A child that ends is started again: at once, or after a growing pause when it lived for less
    than five seconds. On a signal the children get SIGTERM, and SIGKILL five seconds after the
    grace. Further signals are harmless, but a second SIGINT kills the children at once.

    Args:
        argv_for_child: the command line of child number 0, 1, ...; it should call
            ``bind_to_parent`` early and end with code 2 on a configuration error.
        processes: how many.
        grace_s: seconds that a child takes to stop.
        ticks: called every ``tick_s`` seconds in a thread of their own; errors are logged.
        tick_s: seconds between ticks.

    Returns:
        An exit code: 0 after a stop in which no child had to be killed, 1 otherwise, 2 when a
        child reported a configuration error.
    """
    children = [_Child(index) for index in range(processes)]
    ticking = Event()
    Thread(target=_tick, args=(ticks, tick_s, ticking), name="ticks", daemon=True).start()
    with Signals() as signals:
        try:
            while (caught := signals.wait(_LOOK_S)) is None:
                looks = [_look_after(child, argv_for_child) for child in children]
                if any(looks):
                    _stop(children, signals, interrupts=0, grace_s=grace_s)
                    return CONFIGURATION_ERROR
            interrupts = int(caught == signal.SIGINT)
            is_clean = _stop(children, signals, interrupts=interrupts, grace_s=grace_s)
        finally:
            ticking.set()
            _kill(children)  # nothing but an error of our own leaves any
    return 0 if is_clean else 1


def _look_after(child: _Child, argv_for_child: Callable[[int], Sequence[str]]) -> bool:
    """Start the child if it is due; whether it ended with a configuration error."""
    now = time.monotonic()
    if child.process is not None:
        code = child.process.poll()
        if code is None:
            return False
        child.process = None
        if code == CONFIGURATION_ERROR:
            log.error("worker %d: configuration error, stopping all", child.index)
            return True
        _plan_restart(child, now, f"ended with code {code}")
    if now >= child.start_at:
        child.started_at = now
        try:
            child.process = subprocess.Popen(  # noqa: S603  our own command line
                list(argv_for_child(child.index)),
                stdin=subprocess.DEVNULL,
                env={**os.environ, SUPERVISOR_PID: str(os.getpid())},
            )
        except OSError as error:
            _plan_restart(child, now, f"could not be started: {error}")
    return False


def _plan_restart(child: _Child, now: float, what_happened: str) -> None:
    if now - child.started_at >= _SHORT_LIFE_S:
        child.short_lives = 0
        wait_s = 0.0
    else:
        wait_s = min(_FIRST_BACKOFF_S * 2.0 ** min(child.short_lives, 10), _LONGEST_BACKOFF_S)
        child.short_lives += 1
    child.start_at = now + wait_s
    log.warning("worker %d: %s, starting again in %.1f s", child.index, what_happened, wait_s)


def _stop(children: Sequence[_Child], signals: Signals, *, interrupts: int, grace_s: float) -> bool:
    """Stop all children; whether none had to be killed."""
    running = [child.process for child in children if child.process is not None]
    for process in running:
        process.terminate()
    kill_at = time.monotonic() + grace_s + _KILL_AFTER_S
    while any(process.poll() is None for process in running):
        interrupts += signals.wait(0.02) == signal.SIGINT
        if interrupts > 1 or time.monotonic() >= kill_at:
            _kill(children)
            return False
    return True


def _kill(children: Sequence[_Child]) -> None:
    for child in children:
        if child.process is not None and child.process.poll() is None:
            log.warning("worker %d: did not stop, killing it", child.index)
            child.process.kill()
            child.process.wait()


def _tick(ticks: Sequence[Callable[[], None]], tick_s: float, ended: Event) -> None:
    while ticks and not ended.wait(tick_s):
        for tick in ticks:
            try:
                tick()
            except Exception:
                log.exception("a periodic check of the supervisor failed")
