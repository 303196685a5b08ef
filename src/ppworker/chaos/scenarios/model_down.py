"""The server of a model answers 503 for a minute, with thousands of jobs due (F26)."""

import time
from datetime import datetime
from typing import Any

from ppworker.chaos import load, measure
from ppworker.chaos.cluster import Cluster
from ppworker.chaos.programs import wait_for
from ppworker.chaos.runner import DOWN_PATH
from ppworker.chaos.scenario import Measured, Run, Scenario, add

_JOBS = 5_000
_DOWN_S = 60.0
_BACK_S = 300.0
_WARM_UP_SHARE = 0.2
"""Of the jobs: after a fixed time a quick machine may have no job left that could fail."""
_MOST_CALLS = 20
_MOST_BURNT = 2
_MOST_CROWD = 2.0
_IN_FLIGHT_S = 0.5
"""In which calls that were under way when it paused fail too."""
_CROWD_OF = 50
"""Fewer retries say nothing about how they are spread."""

# What one transaction wrote is one call of the model.
_CALLS = """
SELECT count(DISTINCT a.xmin::text) FROM job_attempts a
WHERE a.reason = 'unavailable' AND a.ended_at >= :since AND a.ended_at < :until
"""
_OPENED = "SELECT min(opened_at) FROM post_processor_circuits"
# Jobs that failed and wait, by the second in which they are due again.
_DUE = """
SELECT count(*) FROM post_processor_jobs WHERE status = 'pending' AND attempts > 0
GROUP BY floor(extract(epoch FROM run_at))
"""


def _once(run: Run) -> Measured:
    with run.cluster() as cluster:
        planned = run.times(_JOBS, least=1000)
        down = cluster.folder / "down"
        work = load.make(cluster, runner=DOWN_PATH, down=str(down))
        cluster.start_workers()
        work.add(planned)
        with run.phase("warm-up"):
            most_left = planned * (1 - _WARM_UP_SHARE)
            wait_for(lambda: cluster.live_jobs() <= most_left, seconds=60, what="the first jobs")
        with run.phase("fault") as fault:
            down.touch()
            opened_at, crowds = _until_it_pauses(cluster)
            time.sleep(max(0.0, run.seconds(_DOWN_S, least=6) - fault.seconds))
            down.unlink()
        with run.phase("recovery") as back:
            wait_for(lambda: _is_asked(cluster, back.began), seconds=_BACK_S, what="an answer")
            back_s = back.seconds
            cluster.drain(seconds=_BACK_S)
        found = measure.totals(cluster, planned=planned)
        until_open = cluster.one(_CALLS, since=fault.began, until=opened_at)
        calls = cluster.one(_CALLS, since=fault.began, until=back.began)
        burnt = max(0, found.most_attempts - 1)
        crowd = max(crowds) / (sum(crowds) / len(crowds)) if crowds else 0.0
        missed = []
        if until_open > _MOST_CALLS:
            missed.append(f"paused after {until_open} failed calls, not {_MOST_CALLS}")
        if burnt > _MOST_BURNT:
            missed.append(f"{burnt} attempts burnt for a job, not {_MOST_BURNT}")
        if crowd > _MOST_CROWD and sum(crowds) >= _CROWD_OF:
            missed.append(f"{crowd:.1f} times the mean of retries in one second")
        broken = [*found.broken(), *cluster.check()]
        if found.failed:
            broken.append(f"{found.failed} jobs failed")
        return Measured(
            figure=f"{planned:,} jobs, the model away for {run.seconds(_DOWN_S, least=6):g} s: "
            f"paused after {until_open} failed calls, {calls} in all; {burnt} attempts burnt for "
            f"a job at most; an answer {back_s:.1f} s after its return; {found.completed:,} "
            "completed",
            broken=broken,
            missed=missed,
            figures={
                **found.as_figures(),
                "calls_until_pause": until_open,
                "calls_while_down": calls,
                "retries_by_second": crowds,
                "answered_again_s": round(back_s, 1),
            },
            phases=measure.described(cluster, run.phases),
        )


def _until_it_pauses(cluster: Cluster) -> tuple[datetime, list[int]]:
    """When the post-processor paused, and how many failed jobs are due in which second then."""
    wait_for(lambda: cluster.one(_OPENED), seconds=60, what="the pause")
    time.sleep(_IN_FLIGHT_S)
    rows: list[Any] = cluster.sql(_DUE)
    return cluster.one(_OPENED), [row[0] for row in rows]


def _is_asked(cluster: Cluster, since: datetime) -> bool:
    return bool(
        cluster.one(
            "SELECT EXISTS (SELECT 1 FROM post_processor_jobs WHERE completed_at > :since)",
            since=since,
        )
    )


add(
    Scenario(
        name="model-down",
        faults=("F26",),
        promise="While a model's server is down its post-processor pauses and tries it with one "
        "job now and then; when it is back all jobs are done, and none has paid for it.",
        fault=f"every call answers 503 for {_DOWN_S:g} s, with {_JOBS:,} jobs due",
        target=f"paused within {_MOST_CALLS} failed calls, at most {_MOST_BURNT} attempts burnt "
        f"for a job, no second with more than {_MOST_CROWD:g} times the mean of retries, all "
        "completed",
        once=_once,
        quick_scale=0.1,
    )
)
