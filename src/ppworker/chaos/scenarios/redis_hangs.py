"""Redis accepts connections and commands, and never answers (F14)."""

import time
from typing import Any

from ppworker import settings, wiring
from ppworker.chaos import load, measure
from ppworker.chaos.cluster import Cluster
from ppworker.chaos.load import Load
from ppworker.chaos.programs import Program
from ppworker.chaos.proxy import Proxy, address_of, through
from ppworker.chaos.scenario import Measured, Run, Scenario, add
from ppworker.chaos.uploads import SteadyUploads, waits_s

_UPLOADING_S = 30.0
_EVERY_S = 0.15
_MORE_S = 0.1
_GIVES_UP_S = 1.0
_SLACK_S = 0.2
"""For the threads of this process to be woken on a busy machine."""
_POLL_S = 1.0
_HINTS = 5


def _once(run: Run) -> Measured:
    with run.cluster() as cluster, Proxy(address_of(cluster.redis_url)) as proxy:
        url = through(cluster.redis_url, proxy.port)
        work = load.make(cluster, slow_share=0.0)
        workers = cluster.start_workers(
            processes=2, PPWORKER_REDIS_URL=url, PPWORKER_POLL_S=str(_POLL_S)
        )
        api = cluster.start_api(PPWORKER_REDIS_URL=url)
        pids = {*workers.pids(), *api.pids()}
        seconds = run.seconds(_UPLOADING_S, least=5)
        with run.phase("warm-up"):
            _upload(api, work, "warm-up", 2)
        with run.phase("baseline"):
            normal = _upload(api, work, "normal", seconds)
        proxy.stall()
        with run.phase("fault"):
            hung = _upload(api, work, "hung", seconds)
            gives_up_s = _gives_up_s(cluster, work, url)
        cluster.drain(seconds=60)
        waited = waits_s(work, "hung")
        proxy.drop()
        proxy.flow()
        with run.phase("recovery"):
            after = _upload(api, work, "after", seconds / 2)
        cluster.drain(seconds=60)
        found = measure.totals(cluster)
        errors = [*normal.errors, *hung.errors, *after.errors]
        broken = [*found.broken(), *cluster.check()]
        if errors:
            broken.append(f"{len(errors)} uploads failed: {errors[0]}")
        if gone := pids - {*workers.pids(), *api.pids()}:
            broken.append(f"{len(gone)} processes ended")
        p99s = [measure.percentile(each.seconds, 0.99) for each in (normal, hung)]
        more_s = p99s[1] - p99s[0]
        pick_up_s = measure.percentile(waited, 0.99)
        missed = [f"upload p99 {1000 * more_s:+.0f} ms, not +100 ms"] if more_s > _MORE_S else []
        if gives_up_s > (most_s := _GIVES_UP_S + _SLACK_S):
            missed.append(f"a hint gave up after {gives_up_s:.2f} s, not {most_s:g} s")
        figures = {
            **found.as_figures(),
            "uploads": len(hung.seconds),
            "upload_errors": len(errors),
            "upload_p99_normal_s": round(p99s[0], 4),
            "upload_p99_hung_s": round(p99s[1], 4),
            "upload_max_hung_s": round(max(hung.seconds), 4),
            "hint_gives_up_s": round(gives_up_s, 3),
            "pick_up_p99_s": round(pick_up_s, 3),
            "pick_up_p99_after_s": round(measure.percentile(waits_s(work, "after"), 0.99), 3),
        }
        phases = measure.described(cluster, run.phases)
    return Measured(
        figure=_said(figures), broken=broken, missed=missed, figures=figures, phases=phases
    )


def _said(figures: dict[str, Any]) -> str:
    return (
        "{uploads} uploads while redis hung: p99 {upload_p99_hung_s:.3f} s instead of "
        "{upload_p99_normal_s:.3f} s, slowest {upload_max_hung_s:.3f} s, {upload_errors} errors; "
        "a hint gave up after {hint_gives_up_s:.2f} s; pick-up p99 {pick_up_p99_s:.2f} s"
    ).format_map(figures)


def _upload(api: Program, work: Load, prefix: str, seconds: float) -> SteadyUploads:
    with SteadyUploads(api, work, every_s=_EVERY_S, prefix=prefix) as uploads:
        time.sleep(seconds)
    return uploads


def _gives_up_s(cluster: Cluster, work: Load, url: str) -> float:
    """The longest that a hint takes until it is given up, with a broker of this process."""
    given = settings.load(data_dir=cluster.folder, redis_url=url)
    slowest = 0.0
    for _ in range(_HINTS):
        broker = wiring.hint_broker(given)  # a new one: after a failure it rests
        started = time.monotonic()
        broker.hint(work.processor.id)
        broker.wait_sent(30.0)
        slowest = max(slowest, time.monotonic() - started)
        broker.close()
    return slowest


add(
    Scenario(
        name="redis-hangs",
        faults=("F14",),
        promise="A redis that takes commands and never answers keeps nobody waiting: uploads are "
        "as quick as ever, and jobs are found by polling.",
        fault="a proxy before redis accepts everything and answers nothing, while texts are "
        "uploaded by HTTP",
        target=f"upload p99 at most {1000 * _MORE_S:+g} ms, a hint gives up within "
        f"{_GIVES_UP_S:g} s and {_SLACK_S:g} s for the threads to wake, 0 failed uploads",
        once=_once,
        quick_scale=0.2,
    )
)
