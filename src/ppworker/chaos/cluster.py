"""A whole ppworker to break: servers in a folder of its own, a fresh schema, real programs."""

import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from ppworker import embedded, settings, wiring
from ppworker.chaos import programs
from ppworker.chaos.programs import LateError, Program, wait_for
from ppworker.chaos.runner import MARKERS
from ppworker.embedded import process
from ppworker.embedded.binaries import redis_program
from ppworker.embedded.folder import Folder
from ppworker.embedded.postgres import Postgres
from ppworker.embedded.redis import Redis
from ppworker.errors import StoreUnavailable
from ppworker.pipeline.runs import refresh
from ppworker.store import schema, stats, verify
from ppworker.store.db import Database

if TYPE_CHECKING:
    from ppworker.pipeline.deps import Deps
    from ppworker.worker.broker import HintBroker

_MIGRATING = Lock()
"""Alembic keeps what it works on in its modules; two scenarios may run side by side."""
_CREATE_MARKERS = """
CREATE TABLE chaos_markers (
  job uuid NOT NULL, run uuid NOT NULL, pid int NOT NULL,
  at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (job, run))
"""
_SETTINGS = {
    "PPWORKER_GRACE_S": "5",
    "PPWORKER_LOG_FORMAT": "json",
    "PPWORKER_LOG_LEVEL": "warning",
}
_GONE_S = 30.0


class Cluster:
    """Servers, programs and the kit's own look into the database.

    Every program is started with ``database_url`` and ``redis_url`` in its environment, so none of
    them starts or heals a server: what the kit takes away stays away until the kit brings it back.

    Attributes:
        folder: holds everything, logs too.
        database_url: of PostgreSQL itself; programs may be given the address of a proxy instead.
        redis_url: of Redis itself, likewise.
        deps: the pipeline as a producer has it, in this process, on the servers themselves.
        programs: everything that was started, in that order.
    """

    def __init__(self, folder: Path, servers: embedded.Servers) -> None:
        """Use ``open_cluster``."""
        if servers.redis_url is None:
            raise LateError("; ".join(servers.notes))
        place = Folder.prepare(folder)
        found = redis_program()
        assert found is not None, "its server runs"  # noqa: S101  said for the type checker
        self._place, self._postgres, self._redis = place, Postgres(place), Redis(place, found)
        self.folder = folder
        self.database_url = servers.database_url
        self.redis_url = servers.redis_url
        self.programs: list[Program] = []
        self.settings = settings.load(
            database_url=self.database_url, redis_url=self.redis_url, data_dir=folder
        )
        self.db = Database(self.database_url, connections=4, name="ppworker chaos")
        with _MIGRATING:
            schema.migrate(self.db)
        self.sql(_CREATE_MARKERS)
        self.broker: HintBroker = wiring.hint_broker(self.settings)
        self.deps: Deps = wiring.build_deps(
            self.settings, self.db, broker=self.broker, emit=lambda _: None
        )

    # Programs.

    def start_workers(
        self, *, processes: int = 4, threads: int = 2, ready: bool = True, **environment: str
    ) -> Program:
        """Start ``ppworker worker``: a supervisor, its workers, and a port for their metrics.

        Args:
            processes: how many workers.
            threads: slots of each.
            ready: whether to wait until all of them work.
            environment: further variables, such as ``PPWORKER_LEASE_S="5"``.
        """
        wanted = ["--processes", str(processes), "--threads", str(threads)]
        arguments = ["-m", "ppworker", "worker", *wanted, "--port", "0", "--json"]
        return self.start("workers", arguments, environment, ready=ready)

    def start_api(self, *, ready: bool = True, **environment: str) -> Program:
        """Start ``ppworker api`` on a free port; ``Program.ready`` has its address and a key."""
        arguments = ["-m", "ppworker", "api", "--port", "0", "--json"]
        return self.start("api", arguments, environment, ready=ready)

    def start_worker(self, **environment: str) -> Program:
        """Start one worker process that nobody starts again; it works a moment later."""
        return self.start("worker", ["-m", "ppworker.process", "worker"], environment)

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        ready: bool = False,
        descriptors: Sequence[int] = (),
    ) -> Program:
        """Start ``python ARGUMENTS`` on the servers; variables given win over the kit's own."""
        ours: dict[str, str | None] = {
            **_SETTINGS,
            "PPWORKER_DATABASE_URL": self.database_url,
            "PPWORKER_REDIS_URL": self.redis_url,
            "PPWORKER_DATA_DIR": str(self.folder),
            MARKERS: self.dsn,
        }
        program = Program(
            arguments,
            name=f"{name}-{len(self.programs)}",
            environment=programs.own_environment({**ours, **environment}),
            folder=self.folder,
            descriptors=descriptors,
        )
        self.programs.append(program)
        if ready:
            program.wait_ready()
        return program

    # Servers.

    @property
    def dsn(self) -> str:
        """PostgreSQL itself, as psycopg takes it."""
        url = sa.make_url(self.database_url).set(drivername="postgresql")
        return url.render_as_string(hide_password=False)

    @property
    def postgres_pid(self) -> int | None:
        """Id of PostgreSQL's first process; None while it is away."""
        return self._postgres.leader()

    @property
    def redis_pid(self) -> int | None:
        """Id of Redis; None while it is away."""
        return self._redis.leader()

    def stop_postgres(self) -> None:
        """Stop PostgreSQL at once (as ``pg_ctl stop -m immediate``), and wait for its end."""
        self._abort(self.postgres_pid, signal.SIGQUIT)
        self.db.engine.dispose()

    def start_postgres(self) -> None:
        """Start PostgreSQL; returns when it answers, after its recovery."""
        with self._place.starting():
            self._postgres.start()

    def stop_redis(self) -> None:
        """Kill Redis."""
        self._abort(self.redis_pid, signal.SIGKILL)

    def start_redis(self) -> None:
        """Start Redis; returns when it answers."""
        with self._place.starting():
            self._redis.start()

    def _abort(self, pid: int | None, number: signal.Signals) -> None:
        if pid is not None:
            process.send([pid], number)
            wait_for(lambda: not process.is_alive(pid), seconds=_GONE_S, what="a server's end")

    # The kit's own look.

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """Rows of a statement in a transaction of its own, as text of SQLAlchemy (``:name``).

        Raises:
            StoreUnavailable: PostgreSQL is away, and not only this process's connections to it.
        """
        try:
            return self._sql(statement, values)
        except StoreUnavailable:  # nothing was written
            self.db.engine.dispose()
            return self._sql(statement, values)

    def _sql(self, statement: str, values: Mapping[str, Any]) -> list[Any]:
        with self.db.begin() as tx:
            result = tx.execute(sa.text(statement), values)
            return list(result.all()) if result.returns_rows else []

    def one(self, statement: str, **values: Any) -> Any:
        """The first value of the first row."""
        return self.sql(statement, **values)[0][0]

    def connect(self) -> psycopg.Connection[Any]:
        """A further connection, autocommit, to PostgreSQL itself; the caller closes it."""
        return psycopg.connect(self.dsn, autocommit=True)

    def live_jobs(self) -> int:
        """Jobs that are pending or processing."""
        return int(
            self.one(
                "SELECT count(*) FROM post_processor_jobs WHERE status IN ('pending', 'processing')"
            )
        )

    def drain(self, *, seconds: float) -> None:
        """Wait until no job lives.

        Raises:
            LateError: some live on.
        """
        wait_for(lambda: not self.live_jobs(), seconds=seconds, every_s=0.25, what="the drain")

    def check(self) -> list[str]:
        """Everything that does not hold: ``verify``, ``stats verify``, and markers.

        An empty list is what must be. To be called when no job lives.
        """
        with self.db.begin() as tx:
            broken = [f"{each.invariant}: {each.count}" for each in verify.run(tx)]
            splits = stats.list_split_ids(tx)
        if drift := refresh.verify(self.deps, splits):
            broken.append(f"label stats differ from a recount in {len(drift)} rows")
        broken += [f"{sentence}: {n}" for sentence, query in _OWN.items() if (n := self.one(query))]
        return broken

    def close(self) -> None:
        """End every program; the servers are stopped by ``open_cluster``."""
        programs.end_all(self.programs)
        self.broker.close()
        self.db.close()


_CHAOS_JOBS = """
post_processor_jobs j JOIN post_processors p ON p.id = j.post_processor_id
  AND p.runner LIKE 'ppworker.chaos.runner:%'
"""
_OWN = {
    "a completed job's code ran": f"""
        SELECT count(*) FROM {_CHAOS_JOBS} WHERE j.status = 'completed'
        AND NOT EXISTS (SELECT 1 FROM chaos_markers m WHERE m.job = j.id)""",  # noqa: S608
    # Each lease ran the code once at most: refunded attempts are leases too.
    "a job's code ran at most once per lease": f"""
        SELECT count(*) FROM {_CHAOS_JOBS}
        WHERE (SELECT count(*) FROM chaos_markers m WHERE m.job = j.id) > j.lease_token""",  # noqa: S608
    "a completed job left its one annotation": f"""
        SELECT count(*) FROM {_CHAOS_JOBS} WHERE j.status = 'completed'
        AND 1 <> (SELECT count(*) FROM annotations a WHERE a.item_id = j.item_id
          AND a.version_id = j.version_id AND a.post_processor_id = j.post_processor_id
          AND a.deleted_at IS NULL)""",  # noqa: S608
    "a failed job left no annotation": f"""
        SELECT count(*) FROM {_CHAOS_JOBS} WHERE j.status = 'failed'
        AND EXISTS (SELECT 1 FROM annotations a WHERE a.job_id = j.id)""",  # noqa: S608
}
"""Sentences that the kit adds to ``verify``, and how many jobs break each."""


@contextmanager
def open_cluster(folder: Path | None = None) -> Iterator[Cluster]:
    """Servers and a fresh schema; all that was started is ended at the end, whatever happened.

    Args:
        folder: an empty or new one to be kept; by default one that goes away.
    """
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ppc")))
        servers = stack.enter_context(embedded.acquire(folder))
        cluster = Cluster(folder, servers)
        stack.callback(cluster.close)
        yield cluster
