"""Workers are killed with SIGKILL, one after the other, while a backlog drains (F1)."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from ppworker.chaos import load, measure
from ppworker.chaos.cluster import Cluster
from ppworker.chaos.programs import Program
from ppworker.chaos.scenario import Measured, Run, Scenario, add

LEASE_S = 15.0
PROCESSES, THREADS = 4, 4
_JOBS = 10_000
_EVERY_S = 2.0
_MORE_S = 10.0
# So slow that 10,000 jobs are enough work for a minute of faults and the minute after it.
_SLEEPS: dict[str, Any] = {"least_s": 0.05, "most_s": 0.45, "slow_share": 0.01, "slow_s": 2.0}


def _once(run: Run) -> Measured:
    with run.cluster() as cluster:
        planned = run.times(_JOBS, least=1000)
        work = load.make(cluster, **_SLEEPS)
        work.add(planned)
        lease_s = run.seconds(LEASE_S, least=4)
        workers = cluster.start_workers(
            processes=PROCESSES,
            threads=THREADS,
            PPWORKER_LEASE_S=str(lease_s),
            PPWORKER_SWEEP_S=str(lease_s / 3),
            PPWORKER_POLL_S=str(lease_s / 3),
        )
        with run.phase("warm-up"):
            time.sleep(run.seconds(10))
        with run.phase("baseline") as baseline:
            time.sleep(run.seconds(30, least=5))
        with run.phase("fault"):
            deaths = kill_at_random(run, cluster, workers, seconds=run.seconds(60, least=6))
        with run.phase("recovery") as recovery:
            time.sleep(run.seconds(60, least=5))
        left = cluster.live_jobs()
        cluster.drain(seconds=300)
        broken = cluster.check()
        found = measure.totals(cluster, planned=planned)
        delays = measure.reclaim_delays(cluster, deaths)
        rescues = measure.rescue_delays(cluster, deaths)
        before, after = (measure.of_phase(cluster, each).mean for each in (baseline, recovery))
        p99 = measure.percentile(delays, 0.99)
        missed = [] if delays else ["no killed process held a job: no re-claim"]
        if p99 > lease_s + _MORE_S:
            missed.append(f"re-claim p99 {p99:.1f} s, not {lease_s + _MORE_S:g} s")
        if not left:
            missed.append("the work was done before the recovery was over: no ratio")
        return Measured(
            figure=f"{len(deaths)} kills among {planned:,} jobs: {found.lost} lost, "
            f"{found.doubled} doubled, {found.burnt} attempts burnt, re-claim p99 {p99:.1f} s",
            broken=[*found.broken(), *broken],
            missed=missed,
            ratio=after / before if before and left else None,
            figures={
                **found.as_figures(),
                "kills": len(deaths),
                "jobs_killed": len(delays),
                "reclaim_p50_s": round(measure.percentile(delays, 0.5), 1),
                "reclaim_p99_s": round(p99, 1),
                "rescue_p50_s": round(measure.percentile(rescues, 0.5), 1),
                "rescue_p99_s": round(measure.percentile(rescues, 0.99), 1),
                "baseline_per_s": round(before, 1),
                "recovery_per_s": round(after, 1),
            },
            phases=measure.described(cluster, run.phases),
        )


def kill_at_random(
    run: Run, cluster: Cluster, workers: Program, *, seconds: float, every_s: float = _EVERY_S
) -> list[measure.Death]:
    """Kill a worker process chosen by chance, again and again; what died, and when."""
    deaths = []
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    while datetime.now(UTC) < until:
        started = time.monotonic()
        if living := workers.workers():
            pid = run.random.choice(living)
            deaths.append(measure.death(cluster, pid))
            workers.kill(pid)
        time.sleep(max(0.0, every_s - (time.monotonic() - started)))
    return deaths


add(
    Scenario(
        name="kills",
        faults=["F1"],
        promise="A worker that is killed in the middle of its work costs time and an attempt; no "
        "job is lost and nothing is written twice.",
        fault="SIGKILL to one of 4 worker processes every 2 s for 60 s, while 10,000 jobs drain",
        target="0 lost, 0 doubled, every job ended, stats equal to a recount; re-claim p99 at most "
        f"{LEASE_S + _MORE_S:g} s (lease {LEASE_S:g} s and {_MORE_S:g} s); 95 % of the throughput "
        "in the next minute, median of three",
        once=_once,
        repeat=3,
        quick_scale=0.1,
    )
)
