"""Sweeps that hang, die or are frozen in the middle of a transaction: the others go on."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from functools import partial

import psycopg
import pytest

from factories import World
from ppworker.domain.job import Status
from ppworker.pipeline.runs import rescue
from ppworker.worker.sweeps import Sweep, Sweeper
from promises import Keep
from redis_words import eventually


def test_a_sweep_that_hangs_does_not_stop_the_others() -> None:
    gate, hung, ran = threading.Event(), threading.Event(), []
    told: list[str] = []

    def hang() -> int:
        hung.set()
        gate.wait(20)
        return 0

    def run() -> int:
        ran.append(time.monotonic())
        return 0

    sweeper = Sweeper(
        [
            Sweep(name="hanging", run=hang, every_s=0.05),
            Sweep(name="other", run=run, every_s=0.05),
        ],
        swept=lambda name, _is_ok, _seconds: told.append(name),
        patience_s=0.1,
    )
    sweeper.start()
    assert hung.wait(5)
    seen = len(ran)
    eventually(lambda: len(ran) >= seen + 5)
    assert "hanging" not in told
    hung.clear()
    gate.set()
    assert hung.wait(5), "it runs again once it came back"
    assert "hanging" in told
    sweeper.stop()


def test_a_sweep_is_never_run_twice_at_once() -> None:
    inside, most = 0, 0

    def run() -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.1)
        inside -= 1
        return 0

    runs: list[str] = []
    sweeper = Sweeper(
        [Sweep(name="slow", run=run, every_s=0.02)],
        swept=lambda name, _is_ok, _seconds: runs.append(name),
        patience_s=0.01,
    )
    sweeper.start()
    eventually(lambda: len(runs) >= 3)
    sweeper.stop()
    assert most == 1


def test_stopping_does_not_wait_for_a_sweep_that_hangs() -> None:
    gate, hung = threading.Event(), threading.Event()

    def hang() -> int:
        hung.set()
        gate.wait(20)
        return 0

    sweeper = Sweeper([Sweep(name="hanging", run=hang, every_s=0.02)])
    sweeper.start()
    assert hung.wait(5)
    started = time.monotonic()
    sweeper.stop(wait_s=0.2)
    assert time.monotonic() - started < 2
    gate.set()


SWEEPER = """
import sys, threading
from ppworker import settings, wiring
from ppworker.worker.sweeps import Sweeper

given = settings.load(sweep_s=0.5)
db = wiring.open_database(given, name=sys.argv[1], steady_plans=True)
deps = wiring.build_deps(given, db, emit=lambda events: None)
Sweeper(wiring.sweeps(deps)).start()
threading.Event().wait()
"""


def sweeping(database_url: str, folder: str, name: str) -> subprocess.Popen[bytes]:
    environment = {"PPWORKER_DATABASE_URL": database_url, "PPWORKER_DATA_DIR": folder}
    return subprocess.Popen([sys.executable, "-c", SWEEPER, name], env=os.environ | environment)


def end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGCONT)
    process.kill()
    process.wait()


@pytest.mark.promise
@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_when_the_sweeping_process_is_gone_another_one_sweeps(
    world: World, database_url: str, promise: Keep, tmp_path: object, fault: str
) -> None:
    """Two sweeping processes; one is gone while leases run out."""
    interval_s, slack_s, rounds = 0.5, 0.5, 5
    processor = world.processor(max_attempts=100)
    world.add("one")
    names = ["ppworker one", "ppworker other"]
    gone, other = (sweeping(database_url, f"{tmp_path}/{name}", name) for name in names)
    waits = []
    try:
        eventually(
            lambda: (
                len(
                    world.sql(
                        "SELECT 1 FROM pg_stat_activity WHERE application_name = ANY(:n)", n=names
                    )
                )
                >= 2
            ),
            within_s=20,
        )
        os.kill(gone.pid, signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        for _ in range(rounds):
            eventually(partial(claim_one, world, processor))
            world.expire(processor)
            started = time.monotonic()
            eventually(lambda: world.statuses(processor) == ["pending"], within_s=20)
            waits.append(time.monotonic() - started)
            world.sql("UPDATE post_processor_jobs SET run_at = now(), is_suspect = false")
    finally:
        end(gone)
        end(other)
    slowest = max(waits)
    promise(
        "F37",
        promise="When the process that sweeps dies or hangs, another one does its work",
        fault=f"one of two sweeping processes is {fault} for good",
        target=f"a lease that ran out is seen within twice the interval (2 x {interval_s} s) and "
        f"{slack_s} s for the looks of the test",
        figure=f"slowest of {rounds} rescues {slowest:.2f} s after the lease was over",
        passed=slowest <= 2 * interval_s + slack_s,
    )


def claim_one(world: World, processor: object) -> bool:
    return bool(world.claim(processor).jobs)  # type: ignore[arg-type]


@pytest.mark.promise
def test_a_sweep_frozen_inside_its_transaction_holds_up_its_own_rows_only(
    world: World, database_url: str, promise: Keep
) -> None:
    """What it has locked is skipped by every other sweep, and is free again when PostgreSQL ends
    its session for standing idle in a transaction."""
    processor = world.processor()
    world.add(*(f"word {i}" for i in range(6)))
    batch = world.claim(processor)
    world.expire(processor)
    url = database_url.replace("postgresql+psycopg", "postgresql")
    with closing(psycopg.connect(url)) as frozen:
        frozen.execute("SET LOCAL idle_in_transaction_session_timeout = '2s'")
        locked = [job.item_id for job in batch.jobs[:2]]
        frozen.execute("SELECT 1 FROM dataset_items WHERE id = ANY(%s) FOR UPDATE", [locked])
        started = time.monotonic()
        freed = rescue.rescue(world.deps)
        skipped_s = time.monotonic() - started
        assert world.statuses(processor).count("processing") == 2
        eventually(lambda: rescue.rescue(world.deps) == 2, within_s=20)
        free_s = time.monotonic() - started
    statuses = world.statuses(processor)
    promise(
        "F37",
        promise="A sweep that is frozen in a transaction holds up the rows it has locked and no"
        " other, until PostgreSQL ends its session",
        fault="a session stands idle in a transaction with the items of 2 of 6 overdue jobs locked"
        " and idle_in_transaction_session_timeout at 2 s",
        target="the others are rescued within 1 s, its own within 10 s: when the time-out has "
        "ended it",
        figure=f"{freed} rescued in {skipped_s * 1000:.0f} ms, the rest after {free_s:.1f} s",
        passed=freed == 4 and skipped_s < 1 and free_s < 10 and Status.PROCESSING not in statuses,
    )
