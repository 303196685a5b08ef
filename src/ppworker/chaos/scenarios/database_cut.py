"""Some workers lose their link to PostgreSQL for longer than a lease, the others keep it (F41)."""

import time
from datetime import UTC, datetime
from typing import Any

from ppworker.chaos import load, measure
from ppworker.chaos.cluster import Cluster
from ppworker.chaos.programs import Program, wait_for
from ppworker.chaos.proxy import Proxy, address_of, through
from ppworker.chaos.scenario import Measured, Run, Scenario, add

_CUT_S = 60.0
_LEASE_S = 15.0
_WARM_UP_S, _AFTER_S = 10.0, 20.0
_LEASES = 4
_SLEEPS: dict[str, Any] = {"least_s": 0.05, "most_s": 0.15, "slow_share": 0.01, "slow_s": 2.0}
_MOST_PER_S = 80
_BACK_S = 60.0

# Attempts of cut-off workers that a sweep of the others ended.
_TAKEN = """
SELECT count(*) FROM job_attempts a JOIN workers w ON w.id = a.worker_id
WHERE w.pid = ANY(:pids) AND a.cause = 'rescued'
"""
# Their code began after that, and not under a later lease of theirs.
_BEGUN_LATE = """
SELECT count(*) FROM chaos_markers m
JOIN workers w ON w.pid = m.pid AND w.pid = ANY(:pids)
JOIN job_attempts a ON a.job_id = m.job AND a.worker_id = w.id
WHERE a.cause = 'rescued' AND m.at > a.ended_at AND NOT EXISTS (
  SELECT 1 FROM job_attempts n WHERE n.job_id = a.job_id AND n.worker_id = w.id
  AND n.lease_token > a.lease_token AND n.started_at < m.at)
"""
_FINISHED_SINCE = """
SELECT count(*) FROM job_attempts a JOIN workers w ON w.id = a.worker_id AND w.pid = ANY(:pids)
WHERE a.cause = 'finished' AND a.started_at > :since
"""


def _once(run: Run) -> Measured:
    with run.cluster() as cluster, Proxy(address_of(cluster.database_url)) as proxy:
        lease_s = run.seconds(_LEASE_S)
        warm_up_s, after_s = run.seconds(_WARM_UP_S), run.seconds(_AFTER_S)
        cut_s = max(run.seconds(_CUT_S), _LEASES * lease_s)
        planned = round(_MOST_PER_S * (warm_up_s + cut_s + after_s))
        work = load.make(cluster, **_SLEEPS)
        cut_off = _start(cluster, lease_s, through(cluster.database_url, proxy.port))
        others = _start(cluster, lease_s, cluster.database_url)
        pids = [*cut_off.workers()]
        work.add(planned)
        with run.phase("warm-up"):
            time.sleep(warm_up_s)
        with run.phase("fault"):
            proxy.stall()
            time.sleep(cut_s)
            proxy.flow()
        back_at = datetime.now(UTC)
        with run.phase("recovery"):
            back_s = _works_again_s(cluster, pids, back_at)
            time.sleep(after_s)
        cluster.drain(seconds=300)
        found = measure.totals(cluster, planned=planned)
        taken = cluster.one(_TAKEN, pids=pids)
        refused = cut_off.metric("ppworker_stale_writes_rejected_total")
        broken = [*found.broken(), *cluster.check()]
        begun = cluster.one(_BEGUN_LATE, pids=pids)
        if begun:
            broken.append(f"{begun} jobs were begun under a lease that the server had ended")
        if pids != cut_off.workers() or others.code is not None:
            broken.append("a process ended")
        return Measured(
            figure=f"2 of 4 processes cut off for {cut_s:g} s, {cut_s / lease_s:.0f} leases: "
            f"{taken} of their leases taken by the others, {refused:g} late answers and leases "
            f"refused, {begun} jobs begun under a lease that was over; {found.lost} lost, "
            f"{found.doubled} doubled; they worked again {back_s:.1f} s after the cut",
            broken=broken,
            missed=[] if taken else ["no lease of theirs was taken: the cut proved nothing"],
            figures={
                **found.as_figures(),
                "cut_s": cut_s,
                "lease_s": lease_s,
                "leases_taken": taken,
                "refused": refused,
                "work_again_s": round(back_s, 1),
            },
            phases=measure.described(cluster, run.phases),
        )


def _works_again_s(cluster: Cluster, pids: list[int], since: datetime) -> float:
    """Seconds until one of these processes has ended a job that it claimed since."""
    wait_for(
        lambda: cluster.one(_FINISHED_SINCE, pids=pids, since=since),
        seconds=_BACK_S,
        what="a job of a worker that was cut off",
    )
    return (datetime.now(UTC) - since).total_seconds()


def _start(cluster: Cluster, lease_s: float, url: str) -> Program:
    return cluster.start_workers(
        processes=2,
        PPWORKER_DATABASE_URL=url,
        PPWORKER_LEASE_S=str(lease_s),
        PPWORKER_SWEEP_S=str(lease_s / 3),
    )


add(
    Scenario(
        name="database-cut",
        faults=("F41",),
        promise="A worker that cannot reach PostgreSQL for longer than its lease begins nothing "
        "more under it; others do the work, and what it still finds out is refused.",
        fault="a proxy holds everything between 2 of 4 worker processes and PostgreSQL for 4 "
        "leases, while their models go on",
        target="0 annotations doubled, 0 lost; no code begun under a lease that the server has "
        "ended; no process ends",
        once=_once,
        quick_scale=0.14,
    )
)
