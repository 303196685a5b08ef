"""An idle system: how soon one upload is done, what waiting costs, what a worker process weighs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa

from benchmarks.processes import cpu_s, memory_mb
from benchmarks.servers import Servers
from benchmarks.system import System, is_completion, lines, system
from ppworker.domain.events import Event, JobMoved


@dataclass(slots=True)
class Idle:
    """What was found."""

    stored_ms: list[float]
    """Commit of the upload to the job's ``completed_at``, sorted."""
    seen_ms: list[float]
    """The same to the line in the worker's log, which is written after the COMMIT; sorted."""
    cpu_percent: dict[str, float]
    """Share of one core by part, and ``all``."""
    rss_mb: list[float]
    """Of the larger worker process: at first, after the first backlog, after the second."""
    pss_mb: list[float]
    faults: list[str] = field(default_factory=list)


class _Commits:
    """Notes when an upload was committed: its events are told right after the COMMIT."""

    def __init__(self) -> None:
        self.at: dict[UUID, float] = {}

    def __call__(self, events: Sequence[Event]) -> None:
        now = time.time()
        self.at |= {event.job_id: now for event in events if isinstance(event, JobMoved)}


def measure(servers: Servers, *, uploads: int, rate: float, rest_s: float, backlog: int) -> Idle:
    """One system, in this order: memory at rest, latency, CPU at rest, two backlogs."""
    commits = _Commits()
    with system(servers, "bench_idle", emit=commits) as our:
        items = our.warm_up()
        memory = [_memory(our)]
        time.sleep(2)
        commits.at.clear()
        start = time.monotonic()
        for i in range(uploads):
            time.sleep(max(0.0, start + i / rate - time.monotonic()))
            our.upload(1, priority=0)
        our.wait()
        time.sleep(0.5)
        stored, seen = _latencies(our, commits.at)
        time.sleep(2)
        cpu = _cpu_at_rest(servers, our, rest_s)
        for _ in range(2):
            our.upload(backlog)
            our.wait()
            time.sleep(1)
            memory.append(_memory(our))
        our.fleet.stop()
        return Idle(
            stored_ms=stored,
            seen_ms=seen,
            cpu_percent=cpu,
            rss_mb=[rss for rss, _ in memory],
            pss_mb=[pss for _, pss in memory],
            faults=our.check(items + uploads + 2 * backlog),
        )


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted values, by the nearest rank."""
    return values[min(len(values) - 1, int(share * len(values)))]


def _memory(our: System) -> tuple[float, float]:
    found = [memory_mb(pid) for pid in our.fleet.workers()]
    return max(rss for rss, _ in found), max(pss for _, pss in found)


def _latencies(our: System, committed: dict[UUID, float]) -> tuple[list[float], list[float]]:
    with our.deps.db.begin() as tx:
        rows = tx.execute(
            sa.text("SELECT id, completed_at FROM post_processor_jobs WHERE id = ANY(:ids)"),
            {"ids": list(committed)},
        ).all()
    stored = [(row.completed_at.timestamp() - committed[row.id]) * 1000 for row in rows]
    seen = []
    for line in lines(our.fleet.log):
        job_id = UUID(str(line["job"])) if is_completion(line) else None
        if job_id in committed:
            at = datetime.fromisoformat(str(line["timestamp"])).timestamp()
            seen.append((at - committed[job_id]) * 1000)
    assert len(stored) == len(seen) == len(committed)
    return sorted(stored), sorted(seen)


def _cpu_at_rest(servers: Servers, our: System, rest_s: float) -> dict[str, float]:
    parts = {
        "workers": our.fleet.pids(),
        "postgres": servers.postgres_pids(),
        "redis": servers.redis_pids(),
    }
    before = {name: cpu_s(pids) for name, pids in parts.items()}
    started = time.monotonic()
    time.sleep(rest_s)
    took = time.monotonic() - started
    percent = {name: (cpu_s(pids) - before[name]) / took * 100 for name, pids in parts.items()}
    return {**percent, "all": sum(percent.values())}
