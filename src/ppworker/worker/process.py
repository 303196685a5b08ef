"""One worker process: dramatiq's threads, started, watched for a signal, and stopped in time."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from threading import Thread
from typing import NoReturn

import dramatiq

from ppworker.worker.broker import HintBroker
from ppworker.worker.signals import Signals

log = logging.getLogger(__name__)

_THREAD_TICK_MS = 400
"""Milliseconds after which an idle thread of dramatiq looks whether it shall stop."""
_RELEASE_S = 2.0
"""Seconds past the grace in which running slices give their jobs back."""
SLOT_HANGS = 3
"""Exit code of a process that ended because a slot hung in a model."""
_REDIS_S = 1.0
"""Seconds that stopping spends on redis at most, when all slots are done."""


def run_worker(
    broker: HintBroker,
    signals: Signals,
    *,
    threads: int,
    grace_s: float,
    tick: Callable[[], None] = lambda: None,
    draining: Callable[[], None] = lambda: None,
    hung: Callable[[], int] = lambda: 0,
) -> bool:
    """Work until SIGTERM, SIGINT, ``broker.stopping``, or a slot that hangs.

    Sets ``broker.stopping`` when it is time: slices then finish their batch within ``grace_s``
    seconds or give it back. A second SIGINT ends the wait at once. Any other repeated signal is
    harmless. A thread that hangs is left behind, so end the process with ``leave`` afterwards.

    Args:
        broker: with its actors declared.
        signals: entered by the caller, who leaves the process inside it: a SIGTERM that arrives
            while the rest is closed must not kill what is on its way out.
        threads: slots; one thread more runs for ``refresh_label_stats``.
        grace_s: seconds that running slices have.
        tick: called several times a second as long as this goes on; must be quick.
        draining: called once, when no more work is taken; must be quick.
        hung: how many slots hang in a model; no thread can be stopped, so the process ends for one.
            The others have their grace as ever, and are not kept waiting for it.

    Returns:
        Whether every slot was done in time.
    """
    # Its lines about messages and restarts say nothing that ours do not; its warnings stay.
    logging.getLogger("dramatiq").setLevel(logging.WARNING)
    worker = dramatiq.Worker(broker, worker_timeout=_THREAD_TICK_MS, worker_threads=threads + 1)
    worker.queue_prefetch = threads  # the consumer's bound: it takes only what a slot can start
    worker.start()
    first: int | None = None
    while not broker.stopping.is_set():
        tick()
        first = signals.wait(0.25)
        if first is not None:
            broker.stopping.set()
        elif hung():
            log.error("a slot hangs in a model of this process, long past its limit; it must end")
            broker.stopping.set()
    broker.wake.set()
    slots_by = time.monotonic() + grace_s + _RELEASE_S
    draining()
    return _stop(
        worker,
        signals,
        interrupts=int(first == signal.SIGINT),
        slots_by=slots_by,
        tick=tick,
        hung=hung,
    )


def _stop(
    worker: dramatiq.Worker,
    signals: Signals,
    *,
    interrupts: int,
    slots_by: float,
    tick: Callable[[], None],
    hung: Callable[[], int],
) -> bool:
    """Stop dramatiq's threads; whether the slots were done by ``slots_by`` (monotonic seconds)."""

    def running() -> int:
        return sum(slot.is_alive() for slot in worker.workers)

    # In a thread of its own: its joins add up to more than the grace, and it talks to redis.
    wait_ms = max(0, int((slots_by - time.monotonic()) * 1000))
    stopper = Thread(target=worker.stop, args=(wait_ms,), name="stop", daemon=True)
    stopper.start()
    while time.monotonic() < slots_by and running() > hung():
        tick()
        interrupts += signals.wait(0.02) == signal.SIGINT
        if interrupts > 1:
            return False
    is_done = not running()
    if is_done:
        stopper.join(_REDIS_S)
    return is_done


def leave(code: int) -> NoReturn:
    """End the process now, whatever threads still run; logs and output are flushed first."""
    for flush in (logging.shutdown, sys.stdout.flush, sys.stderr.flush):
        try:
            flush()
        except (OSError, ValueError):  # the pipe's reader has gone, or the stream is closed
            continue
    os._exit(code)
