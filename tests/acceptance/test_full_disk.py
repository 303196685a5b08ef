"""Disks that are full for a while: of the logs, of the data folder, of PostgreSQL itself."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from PIL import Image

from factories import World
from live_workers import TESTS, wait_for
from ppworker import settings, wiring
from ppworker.pipeline.uploads import ingest
from ppworker.store.db import Database
from promises import Keep
from running_program import PROGRAM, Running, environment, eventually

FULL = Path("/dev/full")
"""A device on which every write fails as on a full disk."""


def done(world: World) -> bool:
    return not world.sql(
        "SELECT 1 FROM post_processor_jobs WHERE status IN ('pending', 'processing') LIMIT 1"
    )


def workers_of(world: World) -> list[int]:
    return [row.pid for row in world.sql("SELECT pid FROM workers ORDER BY started_at")]


@pytest.mark.promise
@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
def test_a_full_disk_of_logs_fails_no_job_and_ends_no_process(
    world: World, database_url: str, promise: Keep, tmp_path: Path
) -> None:
    processor = world.processor(runner="scripted_runners:EchoRunner")
    environment = os.environ | {
        "PPWORKER_DATABASE_URL": database_url,
        "PPWORKER_DATA_DIR": str(tmp_path / "data"),
        "PPWORKER_POLL_S": "0.2",
        "PPWORKER_LEASE_S": "2",
        "PPWORKER_SWEEP_S": "0.5",
        "PPWORKER_GRACE_S": "1",
        "PPWORKER_LOG_LEVEL": "debug",
        "PYTHONPATH": str(TESTS),
    }
    with FULL.open("wb") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "ppworker", "worker", "--processes", "1"],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        world.add(*(f"word {i}" for i in range(300)), *(f"UNREADABLE {i}" for i in range(50)))
        wait_for(lambda: done(world), seconds=60, what="the end of the drain")
        (first,) = workers_of(world)
        os.kill(first, signal.SIGKILL)  # which the supervisor would log, too
        world.add(*(f"more {i}" for i in range(100)))
        wait_for(lambda: done(world), seconds=60, what="the end of the drain by the next worker")
        restarts = len(workers_of(world)) - 1
    finally:
        supervisor.terminate()
        code = supervisor.wait(30)
    statuses = world.statuses(processor)
    completed, failed = statuses.count("completed"), statuses.count("failed")
    world.check()
    promise(
        "F42",
        promise="A full disk of logs fails no job and ends no process",
        fault="every line of the log fails as on a full disk, in supervisor and workers, throughout;"
        " one worker is killed",
        target="every job as without the fault, exit code 0, one restart (the one killed)",
        figure=f"{completed} of 400 completed, {failed} of 50 unreadable ones failed, exit code"
        f" {code}, {restarts} restart",
        passed=completed == 400 and failed == 50 and code == 0 and restarts == 1,
    )


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of a few megabytes; only root may have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={request.param}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room there is."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        for size in (1024 * 1024, 4096, 1):
            try:
                while True:
                    os.write(file.fileno(), bytes(size))
            except OSError:
                continue
    assert shutil.disk_usage(disk).free == 0
    return filler


@pytest.mark.promise
@pytest.mark.as_root
@pytest.mark.parametrize("small_disk", [12], indirect=True)
def test_a_full_disk_of_data_breaks_nothing_and_is_over_when_there_is_room(
    db: Database, database_url: str, promise: Keep, small_disk: Path, tmp_path: Path
) -> None:
    """The files of items, the workers' notes of themselves and their figures: all on that disk."""
    data = small_disk / "data"
    given = settings.load(database_url=database_url, data_dir=data)
    world = World(wiring.build_deps(given, db, emit=lambda _: None))
    processor = world.processor(runner="scripted_runners:EchoRunner")
    (small_disk / "tmp").mkdir()
    environment = os.environ | {
        "PPWORKER_DATABASE_URL": database_url,
        "PPWORKER_DATA_DIR": str(data),
        "PPWORKER_POLL_S": "0.2",
        "PPWORKER_GRACE_S": "1",
        "TMPDIR": str(small_disk / "tmp"),
        "PYTHONPATH": str(TESTS),
    }
    worker = subprocess.Popen(
        [sys.executable, "-m", "ppworker", "worker", "--processes", "1"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def upload(i: int) -> bool:
        path = tmp_path / f"{i}.png"
        Image.effect_noise((200, 200), 50 + i).save(path)  # no two are the same
        one = ingest.Upload(name=path.name, path=path)
        try:
            ingest.take_upload(world.deps, world.train, [one])
        except OSError:
            return False
        return True

    try:
        assert all(upload(i) for i in range(10))
        wait_for(lambda: done(world), seconds=30, what="jobs before the fault")
        (pid,) = workers_of(world)
        filler = fill(small_disk)
        refused = sum(not upload(i) for i in range(10, 40))
        world.add(*(f"text alone {i}" for i in range(20)))  # asks for no room on that disk
        time.sleep(2)  # signs of life and figures are written meanwhile, or not
        filler.unlink()
        assert all(upload(i) for i in range(40, 50))
        wait_for(lambda: done(world), seconds=30, what="jobs after the fault")
        is_same = workers_of(world) == [pid]
    finally:
        worker.terminate()
        code = worker.wait(30)
    statuses = world.statuses(processor)
    items = world.sql("SELECT count(*) FROM dataset_items")[0][0]
    world.check()
    promise(
        "F42",
        promise="A full disk of files refuses uploads, breaks nothing, and is over by itself when"
        " there is room",
        fault="the disk of the data folder and of the workers' notes is full for a while",
        target="refused uploads leave nothing, every job is completed, the worker lives on",
        figure=f"{refused} of 30 uploads of files refused, {items} items, {statuses.count('completed')}"
        f" jobs completed, worker {'the same' if is_same else 'restarted'}, exit code {code}",
        passed=refused > 0
        and items == 40 + 30 - refused
        and set(statuses) == {"completed"}
        and len(statuses) == items
        and is_same
        and code == 0,
    )


@pytest.mark.promise
@pytest.mark.long
@pytest.mark.as_root
@pytest.mark.timeout(300)
@pytest.mark.parametrize("small_disk", [400], indirect=True)
def test_a_full_disk_of_postgresql_is_over_by_itself_when_there_is_room(
    promise: Keep, small_disk: Path
) -> None:
    """PostgreSQL, redis, files and notes, all on one small disk; nobody touches the program."""
    small_disk.chmod(0o755)
    with Running(
        small_disk / "d", "up", "--port", "0", "--processes", "1", PPWORKER_POLL_S="0.5"
    ) as up:
        made = up.ask("/datasets", {"name": "d", "content_type": "text"})[1]
        processor = {"name": "a", "model_type": "ner", "output_target": "annotations"}
        assert up.ask(f"/datasets/{made['id']}/post-processors", processor)[0] == 200
        items = f"/datasets/{made['id']}/versions/{made['versions'][0]['id']}/items"
        large = "500 Oak Avenue, Portland, OR 97201 " + "x" * 100_000
        taken: list[str] = []

        def upload(i: int) -> int:
            status, answer = up.ask(items, {"text": f"{i} {large}"})
            if status == 200:
                taken.append(answer["id"])
            return int(status)

        assert [upload(i) for i in range(5)] == [200] * 5
        filler = fill(small_disk)
        until, refused = time.monotonic() + 30, 0
        while time.monotonic() < until:
            refused += upload(len(taken) + refused) != 200
        filler.unlink()
        freed = time.monotonic()
        eventually(lambda: upload(-1) == 200, within_s=60)
        back_s = time.monotonic() - freed
        url = up.ready["database"]
        with closing(psycopg.connect(url, autocommit=True)) as psql:

            def completed() -> int:
                counting = "SELECT count(*) FROM post_processor_jobs WHERE status = 'completed'"
                row = psql.execute(counting).fetchone()
                return 0 if row is None else int(row[0])

            eventually(lambda: completed() == len(taken), within_s=60)
        found = subprocess.run(
            [*PROGRAM, "verify"],
            env=environment(PPWORKER_DATABASE_URL=url, PPWORKER_DATA_DIR=str(small_disk / "d")),
            capture_output=True,
            text=True,
            check=False,
        )
        code = up.stop()
    promise(
        "F42",
        promise="A full disk of PostgreSQL refuses uploads, and is over by itself when there is room",
        fault="the disk of PostgreSQL, redis and files is full for 30 s, under uploads",
        target="no illegal state, uploads that were accepted are done, nobody starts anything anew",
        figure=f"{refused} uploads refused, {len(taken)} accepted and done, accepted again"
        f" {back_s:.1f} s after there was room, verify {found.returncode}, exit code {code}",
        passed=refused > 0 and found.returncode == 0 and code == 0,
    )
