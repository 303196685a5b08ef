"""Processes that are made to die at a crash point, and the one that clears up behind them."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ppworker.chaos.cluster import Cluster
from ppworker.chaos.programs import LateError, Program, wait_for

# They rescue nothing, so that each job is hit by one death at most: two attempts must do.
VICTIM = {
    "PPWORKER_LEASE_S": "120",
    "PPWORKER_SWEEP_S": "300",
    "PPWORKER_POLL_S": "0.2",
    "PPWORKER_BATCH_TARGET_S": "0.1",
}
HEIR = {"PPWORKER_LEASE_S": "2", "PPWORKER_SWEEP_S": "0.5", "PPWORKER_POLL_S": "0.2"}
_SIDE_BY_SIDE = 3
_PATIENCE_S = 60.0
_LOOK_S = 0.05
_KILLED = -signal.SIGKILL
_EXPIRE = [
    f"UPDATE {table} SET lease_expires_at = clock_timestamp() WHERE status = 'processing'"  # noqa: S608  words of this module
    for table in ("post_processor_jobs", "operations")
]


def let_die(
    start: Callable[[str], Program],
    point: str,
    *,
    times: int,
    chance: random.Random,
    feed: Callable[[], None],
    most: int = 3,
) -> int:
    """Start processes that die at a point, some side by side, until so many have.

    Args:
        start: starts one that dies at what it is told (``POINT:N``).
        point: the crash point, with a kind where there is one.
        times: deaths.
        chance: which time of reaching the point each dies.
        feed: sees to it that there is something to do; called again and again.
        most: largest N.

    Returns:
        Deaths.

    Raises:
        LateError: one did not die, or ended otherwise.
    """
    deaths = 0
    living: list[tuple[Program, float]] = []
    while deaths < times:
        while len(living) < min(_SIDE_BY_SIDE, times - deaths):
            living.append((start(f"{point}:{chance.randint(1, most)}"), time.monotonic()))
        feed()
        time.sleep(_LOOK_S)
        for each in list(living):
            program, since = each
            if program.code is None:
                if time.monotonic() - since > _PATIENCE_S:
                    raise LateError(f"{program.name} did not die at {point}; see {program.log}")
                continue
            if program.code != _KILLED:
                raise LateError(f"{program.name} ended with code {program.code}; see {program.log}")
            living.remove(each)
            deaths += 1
    return deaths


def worker(cluster: Cluster) -> Callable[[str], Program]:
    """Starts a worker process that dies at what it is told."""
    return lambda point: cluster.start_worker(PPWORKER_CRASH_AT=point, **VICTIM)


@contextmanager
def heir(cluster: Cluster) -> Iterator[Program]:
    """A worker process that takes over what dead ones held; their leases end now.

    To be used when none but dead processes hold any.
    """
    for statement in _EXPIRE:
        cluster.sql(statement)
    program = cluster.start_worker(**HEIR)
    try:
        yield program
    finally:
        program.stop()


def wait_until(condition: Callable[[], object], program: Program, *, seconds: float) -> None:
    """Wait for something that a program is to do.

    Raises:
        LateError: it has not done it in time, or has ended.
    """
    wait_for(
        lambda: condition() or program.code is not None,
        seconds=seconds, every_s=_LOOK_S, what=f"what {program.name} is to do",
    )  # fmt: skip
    if program.code is not None:
        raise LateError(f"{program.name} ended with code {program.code}; see {program.log}")
