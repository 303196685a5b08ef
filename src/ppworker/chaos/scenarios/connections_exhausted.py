"""Somebody else holds every connection that PostgreSQL allows (F10)."""

import time
from contextlib import suppress
from typing import Any

import psycopg

from ppworker.chaos import load, measure
from ppworker.chaos.cluster import Cluster
from ppworker.chaos.programs import Program, wait_for
from ppworker.chaos.scenario import Measured, Run, Scenario, add

_HELD_S = 60.0
_JOBS = 4_000
_UNREADY_S = 10.0
_LEAST_HELD_S = _UNREADY_S + 5.0
"""Shorter, and nobody could tell whether readiness is told in time."""
_BACK_S = 60.0
_LOOK_S = 0.25
_OK, _UNAVAILABLE = 200, 503
# Without this ppworker would go on with the connections it has, and notice nothing.
_END_SESSIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name LIKE 'ppworker%' AND application_name <> 'ppworker chaos'
"""


class _Hog:
    """Takes every connection there is, and those of ppworker too."""

    def __init__(self, cluster: Cluster) -> None:
        self.held: list[psycopg.Connection[Any]] = []
        self.refusals = 0
        self._cluster = cluster

    def take(self) -> None:
        """End ppworker's sessions, and take what is free now."""
        self._fill()
        self.held[0].execute(_END_SESSIONS)
        self._fill()

    def let_go(self) -> None:
        """Close all of them."""
        for each in self.held:
            with suppress(psycopg.Error):
                each.close()

    def _fill(self) -> None:
        while True:
            try:
                self.held.append(self._cluster.connect())
            except psycopg.OperationalError:
                self.refusals += 1
                return


def _once(run: Run) -> Measured:
    with run.cluster() as cluster:
        planned = run.times(_JOBS, least=600)
        work = load.make(cluster, slow_share=0.0)
        workers, api = cluster.start_workers(), cluster.start_api()
        programs = [workers, api]
        pids = {pid for each in programs for pid in each.pids()}
        work.add(planned)
        hog = _Hog(cluster)
        with run.phase("fault"):
            held_s = run.seconds(_HELD_S, least=_LEAST_HELD_S)
            unready_s, broken = _watch(programs, hog, held_s)
        back_at = time.monotonic()
        hog.let_go()
        with run.phase("recovery"):
            wait_for(
                lambda: all(each.get("/health/ready")[0] == _OK for each in programs),
                seconds=_BACK_S,
                what="readiness, after the connections were free again",
            )
            back_s = time.monotonic() - back_at
            cluster.drain(seconds=300)
        if gone := pids - {pid for each in programs for pid in each.pids()}:
            broken.append(f"{len(gone)} processes ended")
        found = measure.totals(cluster, planned=planned)
        slowest = max(unready_s.values(), default=0.0)
        missing = [each.name for each in programs if each.name not in unready_s]
        broken += [f"{name} stayed ready" for name in missing]
        late = [f"unready after {slowest:.1f} s, not {_UNREADY_S:g} s"]
        return Measured(
            figure=f"all {len(hog.held)} connections held for {held_s:g} s: live throughout, not "
            f"ready after {slowest:.1f} s, ready again {back_s:.1f} s after they were free; "
            f"{found.lost} lost, {found.doubled} doubled, {found.burnt} attempts burnt",
            broken=[*broken, *found.broken(), *cluster.check()],
            missed=late if slowest > _UNREADY_S else [],
            figures={
                **found.as_figures(),
                "connections_held": len(hog.held),
                "unready_s": unready_s,
                "ready_again_s": round(back_s, 1),
            },
            phases=measure.described(cluster, run.phases),
        )


def _watch(
    programs: list[Program], hog: _Hog, seconds: float
) -> tuple[dict[str, float], list[str]]:
    """Hold all connections for so long.

    Returns:
        Seconds until each program said that it is not ready, by name, and what went wrong.
    """
    began = time.monotonic()
    unready_s: dict[str, float] = {}
    broken: set[str] = set()
    while time.monotonic() < began + seconds:
        hog.take()
        for each in programs:
            if each.get("/health/ready")[0] == _UNAVAILABLE:
                unready_s.setdefault(each.name, round(time.monotonic() - began, 2))
            if (code := each.get("/health/live")[0]) != _OK:
                broken.add(f"{each.name} was not live: {code}")
        time.sleep(_LOOK_S)
    return unready_s, sorted(broken)


add(
    Scenario(
        name="connections-exhausted",
        faults=("F10",),
        promise="When PostgreSQL has no connection left, ppworker says that it is not ready, is "
        "not restarted for it, and goes on by itself when there are some again.",
        fault=f"idle connections hold every slot for {_HELD_S:g} s, those of ppworker too: its "
        "sessions are ended again and again",
        target=f"/health/live 200 throughout, /health/ready 503 within {_UNREADY_S:g} s, recovers "
        "alone, clean",
        once=_once,
        quick_scale=0.1,
    )
)
