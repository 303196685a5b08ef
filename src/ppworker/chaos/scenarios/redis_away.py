"""Redis forgets everything in the middle of a run, and then is away for good (F13)."""

import time

from ppworker.chaos import load, measure
from ppworker.chaos.cluster import Cluster
from ppworker.chaos.load import Load
from ppworker.chaos.programs import wait_for
from ppworker.chaos.scenario import Measured, Run, Scenario, add
from ppworker.chaos.uploads import SteadyUploads, waits_s
from ppworker.worker.link import open_client

_JOBS = 6_000
_UPLOADING_S = 30.0
_EVERY_S = 0.3
_POLL_S = 1.0
_LEAST_RATIO = 0.9
_BATCH = 16
_REDIS_S = 5.0


def _once(run: Run) -> Measured:
    with run.cluster() as cluster:
        jobs = run.times(_JOBS, least=400)
        work = load.make(cluster, batch_size=_BATCH, slow_share=0.0)
        cluster.start_workers(PPWORKER_POLL_S=str(_POLL_S))
        api = cluster.start_api()
        with run.phase("warm-up"):
            _drained_in(cluster, work, run.times(_JOBS / 5, least=200))
        with run.phase("baseline"):
            normal_s = _drained_in(cluster, work, jobs)
        with run.phase("fault"):
            flushed_s = _drained_in(cluster, work, jobs, flush=True)
        cluster.stop_redis()
        with run.phase("fault"):
            away_s = _drained_in(cluster, work, jobs)
        with (
            run.phase("uploads"),
            SteadyUploads(api, work, every_s=_EVERY_S, prefix="away") as uploads,
        ):
            time.sleep(run.seconds(_UPLOADING_S, least=5))
        cluster.drain(seconds=60)
        waited = waits_s(work, "away")
        planned = run.times(_JOBS / 5, least=200) + 3 * jobs + len(uploads.seconds)
        found = measure.totals(cluster, planned=planned)
        broken = [*found.broken(), *cluster.check()]
        if uploads.errors:
            broken.append(f"{len(uploads.errors)} uploads failed: {uploads.errors[0]}")
        p99 = measure.percentile(waited, 0.99)
        most_s = _POLL_S + 1
        return Measured(
            figure=f"{planned:,} jobs, redis emptied in the middle and then away: all drained; "
            f"{len(uploads.seconds)} uploads, {len(uploads.errors)} errors; pick-up p99 "
            f"{p99:.2f} s",
            broken=broken,
            missed=[f"pick-up p99 {p99:.2f} s, not {most_s:g} s"] if p99 > most_s else [],
            ratio=normal_s / max(flushed_s, away_s),
            least_ratio=_LEAST_RATIO,
            figures={
                **found.as_figures(),
                "uploads": len(uploads.seconds),
                "upload_errors": len(uploads.errors),
                "pick_up_p50_s": round(measure.percentile(waited, 0.5), 3),
                "pick_up_p99_s": round(p99, 3),
                "normal_per_s": round(jobs / normal_s, 1),
                "flushed_per_s": round(jobs / flushed_s, 1),
                "away_per_s": round(jobs / away_s, 1),
            },
            phases=measure.described(cluster, run.phases),
        )


def _drained_in(cluster: Cluster, work: Load, jobs: int, *, flush: bool = False) -> float:
    """Seconds in which so many new jobs are drained; redis is emptied halfway if asked."""
    work.add(jobs)
    started = time.monotonic()
    if flush:
        wait_for(lambda: cluster.live_jobs() <= jobs / 2, seconds=300, what="half of the jobs")
        client = open_client(cluster.redis_url, timeout_s=_REDIS_S)
        client.flushall()
        client.close()
    cluster.drain(seconds=300)
    return time.monotonic() - started


add(
    Scenario(
        name="redis-away",
        faults=("F13",),
        promise="Redis only wakes workers up: without it, and when it has lost all it knew, every "
        "upload is taken and every job is done; new ones begin a poll later.",
        fault="FLUSHALL in the middle of a drain; then redis is killed and stays away for a whole "
        "drain and for steady uploads",
        target=f"drains fully, 0 failed uploads, pick-up p99 at most poll ({_POLL_S:g} s) + 1 s, "
        f"{_LEAST_RATIO:.0%} of the normal throughput, median of three",
        once=_once,
        repeat=3,
        quick_scale=0.1,
    )
)
