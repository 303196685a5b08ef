"""Inferences from outside: one call, applied by a real worker, against a bare copy of its rows."""

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from benchmarks.servers import Servers
from benchmarks.system import system
from ppworker.pipeline.inferences import inferences
from ppworker.pipeline.runs import refresh
from ppworker.store import datasets, operations, schema, verify
from ppworker.store.db import Database

_LABELS = 20
_PATIENCE_S = 300.0
_OF_VERSION = "version_id IN (SELECT id FROM dataset_versions WHERE dataset_id = %s)"
_WRITTEN = {
    "dataset_items": "dataset_id = %s",
    "item_splits": _OF_VERSION,
    "inferences": "dataset_id = %s",
    "annotations": _OF_VERSION,
}
"""Tables that the call fills, in the order of their foreign keys, and which rows are its."""
_GIVEN = ("users", "datasets", "dataset_versions", "dataset_splits", "labels")
"""Tables that must be filled before."""


@dataclass(slots=True)
class Found:
    """One call, and the bare copy of the rows it made."""

    total: int
    predictions: int
    accept_s: float
    apply_s: float
    bare_s: float
    growth_mb: float
    """Peak of a worker's memory above what it was before."""
    faults: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Inferences per second, from the call to the last COMMIT."""
        return self.total / (self.accept_s + self.apply_s)

    @property
    def bare_rate(self) -> float:
        """The same for the bare copy."""
        return self.total / self.bare_s


def measure(servers: Servers, total: int) -> Found:
    """Add so many inferences of texts with one to three predictions each."""
    lines = servers.folder / "inferences.jsonl"
    predictions = _write_lines(lines, total)
    with system(servers, "bench_inferences") as our:
        our.warm_up()
        with our.deps.db.begin() as tx:
            # A dataset without post-processors: their jobs are measured elsewhere.
            user = our.split.user_id
            datasets.create_dataset(tx, user, "inferences")
            split = datasets.get_split(tx, user, "inferences/train")
        servers.settle("bench_inferences")
        before = {pid: _memory_mb(pid, "VmRSS") for pid in our.fleet.workers()}
        started = time.monotonic()
        accepted = inferences.add_file(our.deps, split, lines)
        accept_s = time.monotonic() - started
        done = _wait(our.deps.db, user, accepted.operation_id)
        assert done.started_at is not None
        assert done.completed_at is not None
        found = Found(
            total=total,
            predictions=predictions,
            accept_s=accept_s,
            apply_s=(done.completed_at - done.started_at).total_seconds(),
            bare_s=0.0,
            growth_mb=max(_memory_mb(pid, "VmHWM") - mb for pid, mb in before.items()),
            faults=_faults(done, total, predictions),
        )
        with our.deps.db.begin() as tx:
            found.faults += [each.invariant for each in verify.run(tx)]
        found.faults += ["stats differ"] if refresh.verify(our.deps, [split.id]) else []
    found.bare_s = _bare(servers, split.dataset_id)
    return found


def _write_lines(path: Path, total: int) -> int:
    chance = random.Random(7)
    predictions = 0
    with path.open("w") as out:
        for number in range(total):
            said = list(_predictions(chance, number))
            predictions += len(said)
            line = {
                "id": f"inference-{number}",
                "name": f"text number {number}, as long as a sentence that somebody wrote down",
                "model_id": "a-model",
                "inference_time": "22.8ms",
                "inference_items": said,
            }
            out.write(json.dumps(line) + "\n")
    return predictions


def _predictions(chance: random.Random, number: int) -> Iterator[dict[str, Any]]:
    for place in range(1 + number % 3):
        yield {
            "prediction": f"label {(number + place) % _LABELS}",
            "confidence": round(chance.random(), 4),
            "coordinates": f"{place * 5} {place * 5 + 4}" if place else "",
        }


def _wait(db: Database, user: UUID, operation_id: UUID) -> operations.Operation:
    give_up = time.monotonic() + _PATIENCE_S
    while time.monotonic() < give_up:
        with db.look() as tx:
            found = operations.find_operation(tx, user, operation_id)
        if found is not None and found.is_over:
            return found
        time.sleep(0.1)
    raise RuntimeError("the workers did not finish")


def _faults(done: operations.Operation, total: int, predictions: int) -> list[str]:
    wanted = {
        "items_created": total,
        "predictions": predictions,
        "annotations_added": predictions,
    }
    if (done.status, dict(done.counts)) == ("completed", wanted):
        return []
    return [f"inferences: {done.status} {done.error} {dict(done.counts)}, not {wanted}"]


def _memory_mb(pid: int, name: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024 / 1e6


def _bare(servers: Servers, dataset_id: UUID) -> float:
    """COPY of the same rows into temporary tables and INSERT ... SELECT from there, at once."""
    url = servers.fresh_database("bench_bare")
    db = Database(url, connections=1)
    schema.migrate(db)
    db.close()
    with (
        psycopg.connect(servers.dsn("bench_inferences")) as source,
        psycopg.connect(url, autocommit=True) as target,
    ):
        for table in _GIVEN:
            _copy_in(target, table, _copy_out(source, table, "true", ()))
        rows = {
            table: _copy_out(source, table, where, (dataset_id,))
            for table, where in _WRITTEN.items()
        }
        servers.settle("bench_bare")
        started = time.monotonic()
        with target.transaction():
            for table, content in rows.items():
                target.execute(f"CREATE TEMP TABLE bare_{table} (LIKE {table}) ON COMMIT DROP")
                _copy_in(target, f"bare_{table}", content)
                target.execute(f"INSERT INTO {table} SELECT * FROM bare_{table}")
        return time.monotonic() - started


Connection = psycopg.Connection[tuple[Any, ...]]


def _copy_out(source: Connection, table: str, where: str, values: Sequence[Any]) -> bytes:
    with source.cursor() as cursor:
        statement = f"COPY (SELECT * FROM {table} WHERE {where}) TO STDOUT"
        with cursor.copy(statement, values) as copy:
            return b"".join(bytes(block) for block in copy)


def _copy_in(target: Connection, table: str, content: bytes) -> None:
    with target.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN") as copy:
        copy.write(content)
