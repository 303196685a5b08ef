"""One ppworker system of the benchmark: a database, a dataset, worker processes, a producer."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from benchmarks.label_runner import PATH
from benchmarks.processes import Fleet
from benchmarks.servers import Servers
from ppworker import settings, wiring
from ppworker.domain.events import Event
from ppworker.domain.post_processor import PostProcessor
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import refresh
from ppworker.pipeline.uploads import ingest
from ppworker.store import datasets, post_processors, schema
from ppworker.store.ids import new_id

_WARM_UPS, _WARM_UP_ITEMS = 10, 50
_CHUNK = 1000
_PATIENCE_S = 300.0

_IS_DONE = sa.text(
    "SELECT NOT EXISTS (SELECT 1 FROM post_processor_jobs "
    "WHERE status IN ('pending', 'processing'))"
)
_CHECK = sa.text("""
SELECT
  (SELECT count(*) FROM post_processor_jobs) AS jobs,
  (SELECT count(*) FROM post_processor_jobs WHERE status = 'completed' AND attempts = 1
     AND lease_token = 1 AND started_at IS NOT NULL) AS completed_at_once,
  (SELECT count(*) FROM annotations) AS annotations,
  (SELECT count(DISTINCT item_id) FROM annotations) AS annotated_items,
  (SELECT count(*) FROM job_results) AS results,
  (SELECT count(*) FROM job_attempts WHERE cause = 'finished') AS attempts,
  (SELECT sum(annotation_count)::bigint FROM (
     SELECT annotation_count FROM label_stats WHERE bucket = 'total' UNION ALL
     SELECT annotation_count FROM label_stat_deltas WHERE bucket = 'total') s) AS counted
""")


@dataclass(frozen=True, slots=True)
class System:
    """What a part of the benchmark works with."""

    deps: Deps
    split: datasets.Split
    processor: PostProcessor
    workers: Fleet | None

    @property
    def fleet(self) -> Fleet:
        """The workers; only of a system that was opened with some."""
        assert self.workers is not None
        return self.workers

    def upload(self, count: int, *, priority: int = 1) -> float:
        """Upload so many items in chunks; returns the seconds it took."""
        started = time.monotonic()
        for first in range(0, count, _CHUNK):
            uploads = [
                ingest.Upload(name=f"{i}.txt", text=f"item {i}")
                for i in range(first, min(first + _CHUNK, count))
            ]
            ingest.take_upload(self.deps, self.split, uploads, priority=priority)
        return time.monotonic() - started

    def wait(self) -> float:
        """Wait until no job lives; returns the monotonic time at which that was seen."""
        give_up = time.monotonic() + _PATIENCE_S
        with self.deps.db.engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            while not connection.execute(_IS_DONE).scalar_one():
                if time.monotonic() > give_up:
                    raise RuntimeError("the workers did not finish")
                self.fleet.check()
                time.sleep(0.01)
            return time.monotonic()

    def warm_up(self) -> int:
        """Have every process work a little; returns the items used for it."""
        for _ in range(_WARM_UPS):
            self.upload(_WARM_UP_ITEMS)
            time.sleep(0.1)
        self.wait()
        time.sleep(0.5)
        return _WARM_UPS * _WARM_UP_ITEMS

    def check(self, items: int) -> list[str]:
        """What is not as it must be once ``items`` items are done; empty when all is right."""
        with self.deps.db.begin() as tx:
            found = dict(tx.execute(_CHECK).one()._mapping)  # noqa: SLF001  public by documentation
        faults = [f"{name}: {n} for {items}" for name, n in found.items() if n != items]
        drift = refresh.verify(self.deps, [self.split.id])
        if drift:
            faults.append(f"stats differ from a recount in {len(drift)} rows")
        if self.workers is not None:
            logged = sum(1 for line in lines(self.workers.log) if is_completion(line))
            if logged != items:
                faults.append(f"log lines: {logged} for {items}")
        return faults


def _silent(_: Sequence[Event]) -> None:
    """The producer's own lines are not part of what is measured."""


@contextmanager
def system(
    servers: Servers,
    name: str,
    *,
    with_workers: bool = True,
    emit: Callable[[Sequence[Event]], None] = _silent,
) -> Iterator[System]:
    """A fresh system; ended with the ``with`` statement."""
    url = servers.fresh_database(name)
    servers.redis().flushall()
    folder = servers.folder / name
    loaded = settings.load(
        database_url=url, redis_url=servers.redis_url, data_dir=folder, log_format="json"
    )
    db = wiring.open_database(loaded, name="benchmark", steady_plans=not with_workers)
    schema.migrate(db)
    broker = wiring.hint_broker(loaded)
    deps = wiring.build_deps(loaded, db, broker=broker, emit=emit)
    with db.begin() as tx:
        user = datasets.ensure_user(tx, "benchmark")
        dataset = datasets.create_dataset(tx, user, "benchmark")
        split = datasets.get_split(tx, user, "benchmark/train")
        processor = PostProcessor(
            id=new_id(),
            dataset_id=dataset.id,
            name="trivial",
            model_type="classification",
            runner=PATH,
            reads="text",
        )
        post_processors.create_post_processor(tx, user, processor)
    fleet = _workers(servers, url, folder) if with_workers else None
    try:
        yield System(deps=deps, split=split, processor=processor, workers=fleet)
    finally:
        if fleet is not None:
            fleet.stop()
        broker.close()
        db.close()


def _workers(servers: Servers, url: str, folder: Path) -> Fleet:
    folder.mkdir(exist_ok=True)
    return Fleet(
        [sys.executable, "-m", "benchmarks.supervisor"],
        environment={
            "PPWORKER_DATABASE_URL": url,
            "PPWORKER_REDIS_URL": servers.redis_url,
            "PPWORKER_DATA_DIR": str(folder),
            "PPWORKER_LOG_FORMAT": "json",
        },
        log=folder / "workers.log",
    )


def lines(log: Path) -> Iterator[dict[str, object]]:
    """The JSON lines of a log; what is no JSON object is skipped."""
    with log.open() as source:
        for line in source:
            if line.startswith("{"):
                yield json.loads(line)


def is_completion(line: dict[str, object]) -> bool:
    """Whether a line tells that a job was completed."""
    return line.get("event") == "job.moved" and line.get("to") == "completed"
