"""PgBouncer of Debian's in transaction mode before PostgreSQL of Debian's: all of it still works."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from factories import World
from live_workers import TESTS
from own_servers import (
    REGISTERED,
    Place,
    Postgres,
    debian_programs,
    free_port,
    own_place,
    until,
    workers,
)
from ppworker import settings, wiring
from ppworker.store import schema
from ppworker.store.connections import STEADY_PLANS, WORKER_LIMITS
from ppworker.store.db import Database
from running_program import Running

pytestmark = [pytest.mark.system, pytest.mark.slow]

JOBS = 600
CAP = 2
SERVER_CONNECTIONS = 4
DAWDLER = "scripted_runners:DawdlingRunner"
ECHO = "scripted_runners:EchoRunner"


class PgBouncer:
    """A pooler in transaction mode: many clients, few connections of the server."""

    def __init__(self, place: Place, postgres: Postgres) -> None:
        self._place = place
        self.port = free_port()
        self.postgres = postgres
        self._process: subprocess.Popen[bytes] | None = None
        self._file = place.path / "pgbouncer.ini"
        self._file.write_text(
            "[databases]\n"
            f"ppworker = host=127.0.0.1 port={postgres.port} dbname=ppworker user=ppworker\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            "auth_type = any\npool_mode = transaction\nmax_client_conn = 200\n"
            f"default_pool_size = {SERVER_CONNECTIONS}\n"
        )
        place.give(self._file)

    @property
    def url(self) -> str:
        return f"postgresql://ppworker@127.0.0.1:{self.port}/ppworker"

    def start(self) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None
        self._process = self._place.spawn([program, self._file], "pgbouncer.log")
        until(self._answers, seconds=30, what="the start of PgBouncer")

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url).close()
        except psycopg.OperationalError:
            return False
        return True

    def show(self, what: str) -> list[dict[str, object]]:
        """Rows of its own view of itself."""
        with psycopg.connect(
            f"postgresql://ppworker@127.0.0.1:{self.port}/pgbouncer", autocommit=True
        ) as link:
            # It speaks the simple protocol only.
            result = link.pgconn.exec_(f"SHOW {what}".encode())
            names = [(result.fname(i) or b"").decode() for i in range(result.nfields)]
            return [
                {n: (result.get_value(row, i) or b"").decode() for i, n in enumerate(names)}
                for row in range(result.ntuples)
            ]

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)  # "immediate shutdown"
            self._process.wait(30)
        self._process = None


@pytest.fixture
def bouncer() -> Iterator[PgBouncer]:
    with own_place() as place:
        postgres = Postgres(place, "data", debian_programs())
        postgres.make()
        postgres.start()
        postgres.ask("CREATE DATABASE ppworker", database="postgres")
        made = PgBouncer(place, postgres)
        made.start()
        try:
            yield made
        finally:
            made.stop()
            postgres.stop()


@pytest.fixture
def world(bouncer: PgBouncer, tmp_path: Path) -> Iterator[World]:
    db = Database(bouncer.url, connections=4)
    schema.migrate(db)
    given = settings.load(database_url=bouncer.url, data_dir=tmp_path / "d")
    yield World(wiring.build_deps(given, db, emit=lambda _: None))
    db.close()


def test_a_session_behind_it_leaves_nothing_to_others(bouncer: PgBouncer) -> None:
    """Each transaction sets what it needs, for itself alone; nothing is prepared."""
    worker = Database(bouncer.url, connections=2, steady_plans=True, limits=WORKER_LIMITS)
    wanted = STEADY_PLANS | {"statement_timeout": "1min", "lock_timeout": "30s"}
    for _ in range(20):
        with worker.begin() as tx:
            found = {name: tx.exec_driver_sql(f"SHOW {name}").scalar_one() for name in wanted}
            assert found == wanted
    assert worker.is_pooled
    other = psycopg.connect(bouncer.url, autocommit=True)
    for name, usual in {"plan_cache_mode": "auto", "enable_seqscan": "on", "jit": "on"}.items():
        row = other.execute(f"SHOW {name}".encode()).fetchone()
        assert row == (usual,), "SET of a session would have stayed with the server's connection"
    assert other.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
    other.close()
    worker.close()


@pytest.mark.timeout(250)
def test_a_whole_run_behind_it(world: World, bouncer: PgBouncer, tmp_path: Path) -> None:
    """Many clients over few connections, a worker killed and the pooler restarted in between."""
    plain = world.processor("plain", runner=DAWDLER, runner_config={"seconds": 0.005})
    capped = world.processor(
        "capped", runner=DAWDLER, runner_config={"seconds": 0.02}, concurrency_cap=CAP,
        batch_size=5, order=1, max_attempts=5,
    )  # fmt: skip
    for start in range(0, JOBS // 2, 100):
        world.add(*(f"word {i}" for i in range(start, start + 100)))
    statuses = "SELECT count(*) FROM post_processor_jobs WHERE status <> 'completed'"
    batches = (
        "SELECT count(DISTINCT batch_id) FROM post_processor_jobs j JOIN post_processors p "
        "ON p.id = j.post_processor_id WHERE p.name = 'capped' AND status = 'processing'"
    )
    ask = bouncer.postgres.ask  # past the pooler
    most = 0

    def left() -> int:
        nonlocal most
        most = max(most, int(ask(batches)))
        return int(ask(statuses))

    with workers(bouncer.url, tmp_path) as group:
        started = [group.start() for _ in range(4)]
        until(lambda: ask(REGISTERED) == len(started), seconds=60, what="the start of workers")
        until(lambda: left() < JOBS - 60, seconds=60, what="progress")
        clients = [each for each in bouncer.show("CLIENTS") if each["database"] == "ppworker"]
        servers = [each for each in bouncer.show("SERVERS") if each["database"] == "ppworker"]
        started[0].kill()
        started[0].wait()
        group.start()
        bouncer.stop()
        bouncer.start()
        until(lambda: left() == 0, seconds=120, what="the end")
        assert [each.poll() for each in started[1:]] == [None] * 3
    print(f"{len(clients)} clients over {len(servers)} connections; at most {most} capped batches")
    assert len(clients) > len(servers)
    assert len(servers) <= SERVER_CONNECTIONS
    assert 0 < most <= CAP
    assert set(world.statuses(plain)) == set(world.statuses(capped)) == {"completed"}
    world.check()


@pytest.mark.timeout(250)
def test_the_program_behind_it(bouncer: PgBouncer, tmp_path: Path) -> None:
    """Migration, API, workers, an upload, an operation, `verify`."""
    more = {
        "PPWORKER_DATABASE_URL": bouncer.url,
        "PPWORKER_PROCESSES": "2",
        "PYTHONPATH": str(TESTS),
    }
    with Running(tmp_path / "d", "up", "--port", "0", **more) as program:

        def run(*arguments: str) -> str:
            done = subprocess.run(
                [sys.executable, "-m", "ppworker", *arguments, "--data-dir", str(tmp_path / "d")],
                env=os.environ | more, capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        run("datasets", "create", "letters")
        run("processors", "create", "letters", "words", "--runner", ECHO)
        texts = [part for i in range(20) for part in ("--text", f"word {i}")]
        run("items", "add", "--split", "letters/train", *texts)
        run("jobs", "wait", "--dataset", "letters", "--timeout", "60")
        version = json.loads(run("versions", "list", "letters", "--json"))
        run("versions", "duplicate", "letters", version[0]["name"])
        run("stats", "rebuild", "letters/train")
        assert "20 items, 0 unlabelled, 20 annotations" in run("stats", "show", "letters/train")
        assert "every invariant holds" in run("verify")
        assert program.ask("/datasets")[0] == 200
