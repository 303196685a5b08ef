"""Real servers of a test alone and real worker processes on them, to be killed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from factories import World
from ppworker import embedded, settings, wiring
from ppworker.embedded import EmbeddedServers
from ppworker.store import schema
from ppworker.store.db import Database

TESTS = Path(__file__).parent


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[EmbeddedServers]:
    """Servers of this test alone: it kills them."""
    with embedded.acquire(tmp_path / "d") as running:
        yield running


@pytest.fixture
def live(servers: EmbeddedServers, tmp_path: Path) -> Iterator[World]:
    """A world on those servers."""
    db = Database(servers.database_url, connections=8)
    schema.migrate(db)
    given = settings.load(database_url=servers.database_url, data_dir=tmp_path / "d")
    yield World(wiring.build_deps(given, db, emit=lambda _: None))
    db.close()


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(servers: EmbeddedServers, tmp_path: Path) -> Iterator[Start]:
    """Starts one worker process, with settings by the names of their variables without the prefix;
    all are ended with the test."""
    started: list[subprocess.Popen[bytes]] = []
    log = (tmp_path / "workers.log").open("ab")

    def launch(**settings: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PPWORKER_DATABASE_URL": servers.database_url,
            "PPWORKER_REDIS_URL": servers.redis_url or "",
            "PPWORKER_DATA_DIR": str(tmp_path / "d"),
            "PPWORKER_LEASE_S": "2",
            "PPWORKER_SWEEP_S": "0.5",
            "PPWORKER_POLL_S": "0.3",
            "PPWORKER_BATCH_TARGET_S": "0.2",
            "PYTHONPATH": str(TESTS),
        }
        environment |= {f"PPWORKER_{name}": value for name, value in settings.items()}
        if not servers.redis_url:
            del environment["PPWORKER_REDIS_URL"]
        process = subprocess.Popen(
            [sys.executable, "-m", "ppworker.process"], env=environment, stdout=log, stderr=log
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            process.terminate()
    for process in started:
        process.wait(30)
    log.close()


def wait_for(condition: Callable[[], object], *, seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)
