"""PostgreSQL is stopped at once and stays away, again and again, while a backlog drains (F8)."""

import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ppworker.chaos import load, measure
from ppworker.chaos.cluster import Cluster
from ppworker.chaos.programs import Program
from ppworker.chaos.scenario import Measured, Run, Scenario, add

_WARM_UP_S, _BASELINE_S = 10.0, 30.0
_RESTARTS = 5
_AWAY_S = 15.0
_BACK_S = 30.0
_SHARE = 0.95
_SLEEPS: dict[str, Any] = {"least_s": 0.02, "most_s": 0.1, "slow_share": 0.002, "slow_s": 2.0}
_MOST_PER_S = 140
"""Jobs of these sleeps that 8 slots end in a second, and some more: work for the whole run."""


@dataclass(frozen=True, slots=True)
class _Return:
    """PostgreSQL was back."""

    at: datetime
    ended: datetime
    """When it was taken away again, or the measurement ended."""


def _once(run: Run) -> Measured:
    with run.cluster() as cluster:
        warm_up_s, baseline_s = run.seconds(_WARM_UP_S), run.seconds(_BASELINE_S, least=4)
        restarts, back_s = run.times(_RESTARTS), run.seconds(_BACK_S, least=8)
        planned = round(_MOST_PER_S * (warm_up_s + baseline_s + restarts * back_s))
        work = load.make(cluster, **_SLEEPS)
        work.add(planned)
        workers = cluster.start_workers()
        pids = [workers.pid, *workers.workers()]
        with run.phase("warm-up"):
            time.sleep(warm_up_s)
        with run.phase("baseline") as baseline:
            time.sleep(baseline_s)
        returns = [_restart(run, cluster, back_s) for _ in range(restarts)]
        left = cluster.live_jobs()
        cluster.drain(seconds=300)
        before = measure.of_phase(cluster, baseline).mean
        recoveries = [_recovery_s(cluster, each, before) for each in returns]
        ratios = [_rate_at_the_end(cluster, each) / before for each in returns if before]
        found = measure.totals(cluster, planned=planned)
        missed = [
            f"not at {_SHARE:.0%} of the throughput within {_BACK_S:g} s of return {number}"
            for number, seconds in enumerate(recoveries, 1)
            if seconds is None
        ]
        if not left:
            missed.append("the work was done before the last return was over: no ratio")
        slowest = max((each for each in recoveries if each is not None), default=0.0)
        return Measured(
            figure=f"{len(returns)} restarts among {planned:,} jobs: {found.lost} lost, "
            f"{found.doubled} doubled, {found.burnt} attempts burnt; {_SHARE:.0%} of the "
            f"throughput at most {slowest:g} s after each return; no process restarted",
            broken=[*found.broken(), *cluster.check(), *_restarted(workers, pids)],
            missed=missed,
            ratio=statistics.median(ratios) if left and ratios else None,
            figures={
                **found.as_figures(),
                "restarts": len(returns),
                "recoveries_s": recoveries,
                "baseline_per_s": round(before, 1),
                "ratios_of_returns": [round(each, 3) for each in ratios],
                "db_reconnects": workers.metric("ppworker_db_reconnects_total"),
            },
            phases=measure.described(cluster, run.phases),
        )


def _restart(run: Run, cluster: Cluster, back_s: float) -> _Return:
    with run.phase("fault"):
        cluster.stop_postgres()
        time.sleep(run.seconds(_AWAY_S, least=4))
        cluster.start_postgres()
    with run.phase("recovery") as back:
        time.sleep(back_s)
    return _Return(back.began, back.ended or datetime.now(UTC))


def _recovery_s(cluster: Cluster, back: _Return, before: float) -> float | None:
    return measure.recovery_s(
        cluster, baseline=before, since=back.at, until=back.ended, share=_SHARE
    )


def _rate_at_the_end(cluster: Cluster, back: _Return) -> float:
    """Jobs a second in the second half of the time until the next fault."""
    half = (back.ended - back.at) / 2
    window = timedelta(seconds=max(1.0, half.total_seconds()))
    return measure.rates(
        cluster, back.ended - window, back.ended, window_s=window.total_seconds()
    ).mean


def _restarted(workers: Program, pids: list[int]) -> list[str]:
    """What became of processes that should have stayed."""
    gone = set(pids) - {workers.pid, *workers.workers()}
    return [f"{len(gone)} processes ended"] if gone else []


add(
    Scenario(
        name="postgres-restart",
        faults=("F8",),
        promise="PostgreSQL may restart under full load: no process of ppworker needs a restart, "
        "and the throughput is what it was soon after its return.",
        fault=f"PostgreSQL stopped at once (immediate) for {_AWAY_S:g} s, {_RESTARTS} times while "
        "a backlog drains",
        target=f"clean; the same processes; {_SHARE:.0%} of the throughput within {_BACK_S:g} s of "
        "each return, median of three",
        once=_once,
        repeat=3,
        quick_scale=0.1,
    )
)
