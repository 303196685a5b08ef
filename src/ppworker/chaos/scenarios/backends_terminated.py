"""PostgreSQL ends sessions of ppworker, two a second, while a backlog drains (F9)."""

import time
from typing import Any

from ppworker.chaos import load, measure
from ppworker.chaos.cluster import Cluster
from ppworker.chaos.scenario import Measured, Run, Scenario, add

_WARM_UP_S, _BASELINE_S = 10.0, 30.0
_PER_SECOND = 2
_FAULT_S = 60.0
_RECOVERY_S = 30.0
_SLEEPS: dict[str, Any] = {"least_s": 0.02, "most_s": 0.1, "slow_share": 0.002, "slow_s": 2.0}
_MOST_PER_S = 140
"""Jobs of these sleeps that 8 slots end in a second, and some more: work for the whole run."""
# Not the kit's own sessions, nor those that markers go over.
_TERMINATE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = 'ppworker worker' ORDER BY md5(pid::text || :seed) LIMIT 1
"""


def _once(run: Run) -> Measured:
    with run.cluster() as cluster:
        warm_up_s, baseline_s = run.seconds(_WARM_UP_S), run.seconds(_BASELINE_S, least=4)
        fault_s, recovery_s = run.seconds(_FAULT_S, least=5), run.seconds(_RECOVERY_S, least=4)
        planned = round(_MOST_PER_S * (warm_up_s + baseline_s + fault_s + recovery_s))
        work = load.make(cluster, **_SLEEPS)
        work.add(planned)
        workers = cluster.start_workers()
        pids = {workers.pid, *workers.workers()}
        with run.phase("warm-up"):
            time.sleep(warm_up_s)
        with run.phase("baseline") as baseline:
            time.sleep(baseline_s)
        with run.phase("fault"):
            ended = _terminate(run, cluster, fault_s)
        with run.phase("recovery") as recovery:
            time.sleep(recovery_s)
        left = cluster.live_jobs()
        cluster.drain(seconds=300)
        before, after = (measure.of_phase(cluster, each).mean for each in (baseline, recovery))
        found = measure.totals(cluster, planned=planned)
        broken = [*found.broken(), *cluster.check()]
        if gone := pids - {workers.pid, *workers.workers()}:
            broken.append(f"{len(gone)} processes ended")
        errors = workers.metric("ppworker_db_errors_total")
        missed = [] if left else ["the work was done before the recovery was over: no ratio"]
        if not errors:
            missed.append("no error was counted")
        return Measured(
            figure=f"{ended} sessions ended among {planned:,} jobs: {found.lost} lost, "
            f"{found.doubled} doubled, {found.burnt} attempts burnt; {errors:g} errors counted, "
            "none fatal",
            broken=broken,
            missed=missed,
            ratio=after / before if before and left else None,
            figures={
                **found.as_figures(),
                "sessions_ended": ended,
                "errors_counted": errors,
                "baseline_per_s": round(before, 1),
                "recovery_per_s": round(after, 1),
            },
            phases=measure.described(cluster, run.phases),
        )


def _terminate(run: Run, cluster: Cluster, seconds: float) -> int:
    """End sessions for so long; how many."""
    ended = 0
    until = time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        ended += len(cluster.sql(_TERMINATE, seed=str(run.random.random())))
        time.sleep(max(0.0, 1 / _PER_SECOND - (time.monotonic() - began)))
    return ended


add(
    Scenario(
        name="backends-terminated",
        faults=("F9",),
        promise="Sessions that PostgreSQL ends, for whatever reason, cost a repetition: no "
        "process ends, nothing is lost or doubled.",
        fault=f"pg_terminate_backend on sessions of workers, {_PER_SECOND} a second for "
        f"{_FAULT_S:g} s",
        target="clean; errors counted, none fatal; 95 % of the throughput afterwards, median of "
        "three",
        once=_once,
        repeat=3,
        quick_scale=0.08,
    )
)
