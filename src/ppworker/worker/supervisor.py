"""Keeps a number of processes running: starts them, restarts dead ones, stops them all.

It does nothing else, so that nothing can kill it: no redis, no models, no requests.
"""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
_LONGEST_BACKOFF_S = 4.0
"""Short enough that full capacity is back within ten seconds of whatever killed a child, and long
enough that one which dies at each start leaves the machine to the others."""
_KILL_AFTER_S = 5.0
"""Seconds past the grace after which a child that will not stop is killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A process to keep running.

    Attributes:
        name: for the log and for ``ended``; no other child has it.
        argv: its command line. It should call ``bind_to_parent`` early and end with code 2 on a
            configuration error.
        environment: variables it has beside those of this process.
        descriptors: open files it inherits, under the same numbers.
        stays: whether it is stopped only when those that do not stay have stopped.
    """

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    descriptors: Sequence[int] = ()
    stays: bool = False


@dataclass(slots=True)
class _Kept:
    child: Child
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    short_lives: int = 0


def _nobody(_name: str) -> None:
    """Nobody asked to be told."""


def supervise(
    children: Sequence[Child],
    *,
    grace_s: float,
    ended: Callable[[str], None] = _nobody,
    stopping: Callable[[], None] = lambda: None,
    ticks: Sequence[Callable[[], None]] = (),
    tick_s: float = 1.0,
) -> int:
    """Run ``children`` until SIGTERM or SIGINT; to be called in the main thread.

    A child that ends is started again: at once, or after a growing pause when it lived for less
    than five seconds. On a signal the children get SIGTERM, and SIGKILL five seconds after the
    grace; those that stay get it when the others have stopped, and have five seconds. Further
    signals are harmless, but a second SIGINT kills the children at once.

    Args:
        children: what to run.
        grace_s: seconds that a child takes to stop.
        ended: told the name of a child that has ended, before it is started again.
        stopping: called once, before the first child is told to stop. An error of either is logged
            and changes nothing: a full disk must not end what is to outlive it.
        ticks: called every ``tick_s`` seconds in a thread of their own; errors are logged.
        tick_s: seconds between ticks.

    Returns:
        An exit code: 0 after a stop in which no child had to be killed, 1 otherwise, 2 when a
        child reported a configuration error.
    """
    kept = [_Kept(child) for child in children]
    ticking = Event()
    Thread(target=_tick, args=(ticks, tick_s, ticking), name="ticks", daemon=True).start()
    with Signals() as signals:
        try:
            while (caught := signals.wait(_LOOK_S)) is None:
                looks = [_look_after(each, ended) for each in kept]
                if any(looks):
                    _stop(kept, signals, interrupts=0, grace_s=grace_s)
                    return CONFIGURATION_ERROR
            _tell(stopping)
            interrupts = int(caught == signal.SIGINT)
            is_clean = _stop(kept, signals, interrupts=interrupts, grace_s=grace_s)
        finally:
            ticking.set()
            _kill(kept)  # nothing but an error of our own leaves any
    return 0 if is_clean else 1


def _look_after(kept: _Kept, ended: Callable[[str], None]) -> bool:
    """Start the child if it is due; whether it ended with a configuration error."""
    now = time.monotonic()
    if kept.process is not None:
        code = kept.process.poll()
        if code is None:
            return False
        kept.process = None
        _tell(partial(ended, kept.child.name))
        if code == CONFIGURATION_ERROR:
            log.error("%s: configuration error, stopping all", kept.child.name)
            return True
        _plan_restart(kept, now, f"ended with code {code}")
    if now >= kept.start_at:
        kept.started_at = now
        try:
            kept.process = subprocess.Popen(  # noqa: S603  our own command line
                list(kept.child.argv),
                stdin=subprocess.DEVNULL,
                env={**os.environ, **kept.child.environment, SUPERVISOR_PID: str(os.getpid())},
                pass_fds=tuple(kept.child.descriptors),
            )
        except Exception as error:  # noqa: BLE001  no process, no memory, no program: later perhaps
            _plan_restart(kept, now, f"could not be started: {error}")
    return False


def _tell(what: Callable[[], None]) -> None:
    """Call what is beside the point of supervising; its errors are logged."""
    try:
        what()
    except Exception:
        log.exception("a periodic check or a note of the supervisor failed")


def _plan_restart(kept: _Kept, now: float, what_happened: str) -> None:
    if now - kept.started_at >= _SHORT_LIFE_S:
        kept.short_lives = 0
        wait_s = 0.0
    else:
        wait_s = min(_FIRST_BACKOFF_S * 2.0 ** min(kept.short_lives, 10), _LONGEST_BACKOFF_S)
        kept.short_lives += 1
    kept.start_at = now + wait_s
    log.warning("%s: %s, starting again in %.1f s", kept.child.name, what_happened, wait_s)


def _stop(kept: Sequence[_Kept], signals: Signals, *, interrupts: int, grace_s: float) -> bool:
    """Stop all children, those that stay behind the others; whether none had to be killed."""
    waves = (
        ([each for each in kept if not each.child.stays], grace_s + _KILL_AFTER_S),
        ([each for each in kept if each.child.stays], _KILL_AFTER_S),
    )
    for wave, patience_s in waves:
        running = [each.process for each in wave if each.process is not None]
        for process in running:
            process.terminate()
        kill_at = time.monotonic() + patience_s
        while any(process.poll() is None for process in running):
            interrupts += signals.wait(0.02) == signal.SIGINT
            if interrupts > 1 or time.monotonic() >= kill_at:
                _kill(kept)
                return False
    return True


def _kill(kept: Sequence[_Kept]) -> None:
    for each in kept:
        if each.process is not None and each.process.poll() is None:
            log.warning("%s: did not stop, killing it", each.child.name)
            each.process.kill()
            each.process.wait()


def _tick(ticks: Sequence[Callable[[], None]], tick_s: float, ended: Event) -> None:
    while ticks and not ended.wait(tick_s):
        for tick in ticks:
            _tell(tick)
