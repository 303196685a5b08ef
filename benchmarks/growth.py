"""How claim and throughput behave as the backlog grows: one thread, the real steps, timed."""

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.label_runner import PATH
from benchmarks.servers import Servers
from benchmarks.system import system
from ppworker.pipeline.runs import execute
from ppworker.pipeline.runs.label_cache import LabelCache
from ppworker.runners.pool import RunnerPool
from ppworker.worker.loop import _Model

if TYPE_CHECKING:
    from ppworker.store.claims import Places

_BATCH = 200


@dataclass(slots=True)
class Growth:
    """One drain of a backlog by one thread."""

    pending: int
    seconds: float
    claim_ms: tuple[float, float, float]
    """Median of a claim of 200 in the first, middle and last tenth."""
    faults: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Items per second."""
        return self.pending / self.seconds


def measure(servers: Servers, pending: int) -> Growth:
    """Drain ``pending`` jobs and watch the claims."""
    pool = RunnerPool()
    with system(servers, "bench_growth", with_workers=False) as our:
        our.upload(pending)
        servers.settle("bench_growth")
        cache = LabelCache(our.deps.db)
        claims: list[float] = []
        behind: Places | None = None
        permit = pool.acquire(PATH, {})
        assert permit is not None
        with permit:
            model = _Model(pool, permit)
            started = time.monotonic()
            while True:
                before = time.monotonic()
                batch = execute.claim(our.deps, our.processor, limit=_BATCH, behind=behind)
                if not batch.jobs:
                    break
                claims.append((time.monotonic() - before) * 1000)
                behind = batch.places
                execute.run(our.deps, cache, our.processor, model, batch)
            seconds = time.monotonic() - started
        faults = our.check(pending)
    pool.close()
    tenth, middle = max(1, len(claims) // 10), len(claims) // 2
    tenths = (claims[:tenth], claims[middle : middle + tenth], claims[-tenth:])
    first, mid, last = (statistics.median(part) for part in tenths)
    return Growth(pending, seconds, (first, mid, last), faults)
