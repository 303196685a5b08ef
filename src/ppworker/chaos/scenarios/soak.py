"""Steady work for a long time, with a fault of any kind a minute (F43)."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from ppworker.chaos import load, measure
from ppworker.chaos.cluster import Cluster
from ppworker.chaos.growth import MOST_GROWTH, Growth
from ppworker.chaos.load import Load
from ppworker.chaos.programs import Program, wait_for
from ppworker.chaos.proxy import Proxy, address_of, through
from ppworker.chaos.scenario import Measured, Run, Scenario, add
from ppworker.chaos.uploads import RefusedError, Uploader
from ppworker.errors import PpworkerError

_SECONDS = 20 * 60.0
_EVERY_S = 60.0
_LEAST_EVERY_S = 3.0
_TICK_S = 0.5
_PER_TICK = 40
_MOST_WAITING = 2_000
_LOOK_S = 5.0
_LEASE_S = 5.0
_AWAY_S = 5.0
_DRAIN_S = 300.0


@dataclass(slots=True)
class _Scene:
    """What faults are done to."""

    cluster: Cluster
    workers: Program
    api: Program
    postgres: Proxy
    redis: Proxy
    chance: Random
    lease_s: float
    away_s: float
    """Seconds for which something is taken away."""
    counts: Counter[str] = field(default_factory=Counter)


def _any_worker(scene: _Scene) -> int:
    wait_for(scene.workers.workers, seconds=_DRAIN_S, what="a worker process")
    return scene.chance.choice(scene.workers.workers())


def _kill_worker(scene: _Scene) -> None:
    scene.workers.kill(_any_worker(scene))


def _stop_worker(scene: _Scene) -> None:
    pid = _any_worker(scene)
    scene.workers.pause(pid)
    time.sleep(2 * scene.lease_s)
    scene.workers.resume(pid)


def _restart_postgres(scene: _Scene) -> None:
    scene.cluster.stop_postgres()
    time.sleep(scene.away_s)
    scene.cluster.start_postgres()


def _end_sessions(scene: _Scene) -> None:
    scene.cluster.sql(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE application_name LIKE 'ppworker %' AND application_name <> 'ppworker chaos'"
    )


def _cut_postgres(scene: _Scene) -> None:
    scene.postgres.refuse()
    scene.postgres.drop()
    time.sleep(scene.away_s)
    scene.postgres.listen()


def _stall_postgres(scene: _Scene) -> None:
    scene.postgres.stall()
    time.sleep(2 * scene.lease_s)
    scene.postgres.flow()


def _restart_redis(scene: _Scene) -> None:
    scene.cluster.stop_redis()
    time.sleep(scene.away_s)
    scene.cluster.start_redis()


def _stall_redis(scene: _Scene) -> None:
    scene.redis.stall()
    time.sleep(scene.away_s)
    scene.redis.flow()


FAULTS: dict[str, Callable[[_Scene], None]] = {
    "worker killed": _kill_worker,
    "worker stopped past its lease": _stop_worker,
    "PostgreSQL restarted": _restart_postgres,
    "sessions terminated": _end_sessions,
    "PostgreSQL cut off": _cut_postgres,
    "PostgreSQL silent": _stall_postgres,
    "redis restarted": _restart_redis,
    "redis silent": _stall_redis,
}
"""What may happen, by what it is called; each returns when it is over."""


def _once(run: Run) -> Measured:
    growth = Growth()
    with run.cluster() as cluster, _scene(run, cluster) as scene:
        work = load.make(cluster, least_s=0.005, most_s=0.05, slow_share=0.005, slow_s=1.0)
        uploader = Uploader(scene.api, work)
        with run.phase("baseline"):
            _work(scene, work, uploader, growth, run.seconds(_EVERY_S))
        _faults(run, scene, work, uploader, growth)
        with run.phase("recovery"):
            _work(scene, work, uploader, growth, run.seconds(_EVERY_S))
        uploader.close()
        cluster.drain(seconds=_DRAIN_S)
        found = measure.totals(cluster)
        items = cluster.one("SELECT count(*) FROM dataset_items")
        broken = [*found.broken(), *cluster.check()]
        if items != found.planned:
            broken.append(f"{items} items, {found.planned} jobs")
        memory = growth.memory()
        missed = growth.missed()
        if run.scale >= 1 and not memory:
            missed.append("no process was seen for long enough to tell its memory")
        return Measured(
            figure=f"{scene.counts.total()} faults of {len(scene.counts)} kinds among "
            f"{found.planned:,} jobs: {found.lost} lost, {found.doubled} doubled, "
            f"{found.burnt} attempts burnt; memory {max(memory.values(), default=0.0):+.1%}",
            broken=broken,
            missed=missed,
            figures={
                **found.as_figures(),
                "faults": dict(scene.counts),
                "memory_growth": memory,
                "peaks": growth.peaks(),
                "connections": growth.connections[:: max(1, len(growth.connections) // 40)],
            },
            phases=measure.described(cluster, run.phases, window_s=run.seconds(20, least=2)),
        )


@contextmanager
def _scene(run: Run, cluster: Cluster) -> Iterator[_Scene]:
    """Workers and the API behind proxies, so that links can be cut too."""
    with (
        Proxy(address_of(cluster.database_url)) as postgres,
        Proxy(address_of(cluster.redis_url)) as redis,
    ):
        lease_s, away_s = run.seconds(_LEASE_S), run.seconds(_AWAY_S, least=1)
        told: dict[str, Any] = {
            "PPWORKER_DATABASE_URL": through(cluster.database_url, postgres.port),
            "PPWORKER_REDIS_URL": through(cluster.redis_url, redis.port),
            "PPWORKER_LEASE_S": str(lease_s),
            "PPWORKER_SWEEP_S": str(lease_s / 3),
        }
        api = cluster.start_api(**told)
        workers = cluster.start_workers(processes=2, threads=2, **told)
        yield _Scene(cluster, workers, api, postgres, redis, run.random, lease_s, away_s)
        workers.stop()
        api.stop()


def _faults(run: Run, scene: _Scene, work: Load, uploader: Uploader, growth: Growth) -> None:
    """A fault a minute; each kind comes once before any comes again."""
    total_s = run.seconds(_SECONDS, least=_LEAST_EVERY_S * len(FAULTS))
    every_s = max(_LEAST_EVERY_S, min(_EVERY_S, total_s / len(FAULTS)))
    kinds: list[str] = []
    with run.phase("fault"):
        for _ in range(int(total_s / every_s)):
            kinds = kinds or run.random.sample(sorted(FAULTS), len(FAULTS))
            kind = kinds.pop()
            began = time.monotonic()
            run.say(fault=kind)
            FAULTS[kind](scene)
            scene.counts[kind] += 1
            left_s = every_s - (time.monotonic() - began)
            _work(scene, work, uploader, growth, max(1.0, left_s))


def _work(scene: _Scene, work: Load, uploader: Uploader, growth: Growth, seconds: float) -> None:
    """Steady uploads, through the API and past it, and a look at the processes now and then."""
    until = time.monotonic() + seconds
    look_at = 0.0
    while (now := time.monotonic()) < until:
        if scene.cluster.live_jobs() < _MOST_WAITING:
            with suppress(PpworkerError):
                work.add(_PER_TICK)
            with suppress(RefusedError):
                uploader.one("soak")
        if now >= look_at:
            growth.look(scene.cluster, {"worker": scene.workers, "api": scene.api})
            look_at = now + _LOOK_S
        time.sleep(_TICK_S)


add(
    Scenario(
        name="soak",
        faults=["F43"],
        promise="Days of work with all kinds of faults leave every invariant whole, and no "
        "process takes more and more of the machine.",
        fault=f"a random fault a minute for {_SECONDS / 60:g} minutes (the reference says 24 h): "
        + ", ".join(FAULTS),
        target=f"clean at the end; memory growth under {MOST_GROWTH:.0%} in every process that "
        "lives long; no growth of connections, threads and open files: the highest of the second "
        "half against the highest of the first",
        once=_once,
        quick_scale=0.03,
    )
)
