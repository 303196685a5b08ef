"""What a run was like, read from the rows that it left: rates, recovery, what was lost or doubled.

Times of phases and of faults are of this machine's clock, which PostgreSQL on it shares.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from ppworker.chaos.cluster import Cluster
from ppworker.chaos.scenario import Phase

WINDOW_S = 5.0
"""Seconds over which a rate is taken: some batches long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What became of all jobs."""

    planned: int
    completed: int
    failed: int
    lost: int
    """Neither completed nor failed."""
    doubled: int
    """Annotations beyond one for each item and post-processor."""
    burnt: int
    """Attempts beyond the first one of each job."""
    most_attempts: int
    rescues: int
    """Attempts that were ended by a sweep."""
    markers: int
    """Times that code of a job ran."""

    def broken(self) -> list[str]:
        """What must not be: jobs lost, annotations doubled."""
        found = {"jobs lost": self.lost, "annotations doubled": self.doubled}
        return [f"{n} {what}" for what, n in found.items() if n]

    def as_figures(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


_TOTALS = """
SELECT count(*) AS planned,
  count(*) FILTER (WHERE status = 'completed') AS completed,
  count(*) FILTER (WHERE status = 'failed') AS failed,
  count(*) FILTER (WHERE status NOT IN ('completed', 'failed')) AS lost,
  (SELECT coalesce(sum(n - 1), 0)::int FROM (SELECT count(*) AS n FROM annotations
    WHERE deleted_at IS NULL AND source = 'model'
    GROUP BY item_id, version_id, post_processor_id) a) AS doubled,
  coalesce(sum(greatest(attempts - 1, 0)), 0)::int AS burnt,
  coalesce(max(attempts), 0) AS most_attempts,
  (SELECT count(*) FROM job_attempts WHERE cause = 'rescued'
    OR (cause IN ('exhausted', 'crashed') AND reason IN ('lease_expired', 'deadline'))) AS rescues,
  (SELECT count(*) FROM chaos_markers) AS markers
FROM post_processor_jobs
"""


def totals(cluster: Cluster, *, planned: int | None = None) -> Totals:
    """Count everything.

    Args:
        cluster: where no job lives any more, else those that do count as lost.
        planned: jobs that there must be; those that are not there count as lost too.
    """
    (row,) = cluster.sql(_TOTALS)
    found = Totals(**row._mapping)  # noqa: SLF001  public by documentation
    if planned is None or planned == found.planned:
        return found
    missing = planned - found.planned
    return Totals(**{**asdict(found), "planned": planned, "lost": found.lost + missing})


@dataclass(frozen=True, slots=True)
class Rates:
    """Jobs that were completed, by windows of time."""

    began: datetime
    window_s: float
    counts: Sequence[int]

    @property
    def per_second(self) -> list[float]:
        """Of each window."""
        return [count / self.window_s for count in self.counts]

    @property
    def median(self) -> float:
        """Of the windows; 0 when there is none."""
        return statistics.median(self.per_second) if self.counts else 0.0

    @property
    def mean(self) -> float:
        """Over all windows; 0 when there is none."""
        return statistics.mean(self.per_second) if self.counts else 0.0


def rates(
    cluster: Cluster, began: datetime, ended: datetime, *, window_s: float = WINDOW_S
) -> Rates:
    """How fast jobs were completed between two moments, in whole windows."""
    windows = int((ended - began).total_seconds() / window_s + 1e-6)
    rows = cluster.sql(
        "SELECT floor(extract(epoch FROM completed_at - :began) / :window)::int AS n, count(*) "
        "FROM post_processor_jobs WHERE status = 'completed' AND completed_at >= :began "
        "AND completed_at < :ended GROUP BY 1",
        began=began,
        ended=began + timedelta(seconds=windows * window_s),
        window=window_s,
    )
    counts = dict(rows)
    return Rates(began, window_s, [int(counts.get(n, 0)) for n in range(windows)])


def of_phase(cluster: Cluster, phase: Phase, *, window_s: float = WINDOW_S) -> Rates:
    """Rates within a phase; of a short one, one window."""
    ended = phase.ended or datetime.now(UTC)
    return rates(cluster, phase.began, ended, window_s=min(window_s, max(phase.seconds, 0.1)))


def described(
    cluster: Cluster, phases: Sequence[Phase], *, window_s: float = 2.0
) -> list[dict[str, Any]]:
    """Phases as a ``Result`` keeps them: name, seconds, rate, and rates of windows for the plot."""
    found = []
    for phase in phases:
        each = of_phase(cluster, phase, window_s=window_s)
        found.append(
            {
                "name": phase.name,
                "seconds": round(phase.seconds, 1),
                "rate": round(each.mean, 1),
                "window_s": round(each.window_s, 2),
                "rates": [round(rate, 1) for rate in each.per_second],
            }
        )
    return found


def recovery_s(
    cluster: Cluster,
    *,
    baseline: float,
    since: datetime,
    until: datetime,
    share: float = 0.95,
    window_s: float = WINDOW_S,
) -> float | None:
    """Seconds from ``since`` to the end of the first window with that share of the baseline.

    Windows begin at each whole second. None when there is no such window before ``until``.
    """
    seconds = rates(cluster, since, until, window_s=1.0).counts
    width = max(1, round(window_s))
    for first in range(len(seconds) - width + 1):
        if sum(seconds[first : first + width]) / width >= share * baseline:
            return float(first + width)
    return None


@dataclass(frozen=True, slots=True)
class Death:
    """A worker process that was killed or stopped on purpose."""

    at: datetime
    pid: int
    worker_id: UUID | None
    """As the register of workers knows it; None when it had not registered yet."""


def death(cluster: Cluster, pid: int) -> Death:
    """What to remember of a process; to be called just before it is killed."""
    rows = cluster.sql(
        "SELECT id FROM workers WHERE pid = :pid ORDER BY started_at DESC LIMIT 1", pid=pid
    )
    return Death(datetime.now(UTC), pid, rows[0].id if rows else None)


# The attempt that the death ended, and the next one of the same job.
_RECLAIMS = """
SELECT extract(epoch FROM a.ended_at - :at)::float AS rescued_s,
  extract(epoch FROM n.started_at - :at)::float AS claimed_s
FROM job_attempts a JOIN LATERAL (
  SELECT started_at FROM job_attempts n WHERE n.job_id = a.job_id
    AND n.lease_token > a.lease_token ORDER BY n.lease_token LIMIT 1) n ON true
WHERE a.worker_id = :worker AND a.cause = 'rescued' AND a.started_at <= :at
"""


def reclaim_delays(cluster: Cluster, deaths: Sequence[Death]) -> list[float]:
    """Seconds from each death to the next claim of each job that was held then, sorted.

    To be called when no job lives.
    """
    return sorted(row.claimed_s for row in _reclaims(cluster, deaths))


def rescue_delays(cluster: Cluster, deaths: Sequence[Death]) -> list[float]:
    """Seconds from each death to the sweep that took its jobs back, sorted; likewise."""
    return sorted(row.rescued_s for row in _reclaims(cluster, deaths))


def _reclaims(cluster: Cluster, deaths: Sequence[Death]) -> list[Any]:
    return [
        row
        for each in deaths
        if each.worker_id is not None
        for row in cluster.sql(_RECLAIMS, at=each.at, worker=each.worker_id)
    ]


def percentile(values: Sequence[float], share: float) -> float:
    """Of values, by the nearest rank; 0 when there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
