"""Processes die at each named point, again and again, and others go on behind them (F2)."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from ppworker.chaos import load, measure, victims
from ppworker.chaos.cluster import Cluster
from ppworker.chaos.load import Load
from ppworker.chaos.long_work import ITEMS, LongWork
from ppworker.chaos.programs import Program
from ppworker.chaos.scenario import Measured, Run, Scenario, add
from ppworker.crash_points import POINTS
from ppworker.monitoring import ports
from ppworker.pipeline.setup import accounts
from ppworker.worker.hints import NAMESPACE
from ppworker.worker.messages import SCHEMA_VERSION, TAKE_UPLOAD

_DEATHS = 20
_ATTEMPTS = 2
_DRAIN_S = 120.0
_QUICK: dict[str, Any] = {"least_s": 0.001, "most_s": 0.005, "slow_share": 0.0}
_IN_A_JOB = (
    "after_claim_commit", "before_model", "after_model", "in_finish", "after_finish_commit",
)  # fmt: skip
_IN_AN_OPERATION = ("in_operation_step", "after_operation_step")
_POLL_S = 1.0
_CLAIM_S = 2 * _POLL_S
"""An idle worker polls each second, jittered by half; F16 grants one second more."""


def _once(run: Run) -> Measured:
    times = run.times(_DEATHS)
    deaths: dict[str, int] = {}
    broken: list[str] = []
    figures: dict[str, object] = {}
    for part in (_jobs, _uploads, _commands, _operations):
        with run.cluster() as cluster, run.phase(part.__name__.strip("_")):
            found = part(run, cluster, times, deaths)
            totals = measure.totals(cluster)
            broken += [*totals.broken(), *cluster.check(), *found]
            if totals.most_attempts > _ATTEMPTS:
                broken.append(f"a job took {totals.most_attempts} attempts")
    figures["deaths"] = deaths
    left = set(POINTS) - {point.partition(".")[0] for point in deaths}
    broken += [f"no death at {point}" for point in sorted(left)]
    return Measured(
        figure=f"{sum(deaths.values())} deaths at {len(deaths)} points, "
        + ("clean after each" if not broken else "not clean"),
        broken=broken,
        figures=figures,
    )


def _jobs(run: Run, cluster: Cluster, times: int, deaths: dict[str, int]) -> list[str]:
    """Points on the way of a job."""
    work = load.make(cluster, batch_size=8, **_QUICK)

    def feed() -> None:
        if _pending(cluster) < ITEMS // 5:
            work.add(ITEMS // 5)

    for point in _IN_A_JOB:
        start = victims.worker(cluster)
        deaths[point] = victims.let_die(start, point, times=times, chance=run.random, feed=feed)
        run.say(point=point, deaths=deaths[point])
    with victims.heir(cluster):
        cluster.drain(seconds=_DRAIN_S)
    return []


def _uploads(run: Run, cluster: Cluster, times: int, deaths: dict[str, int]) -> list[str]:
    """Between the commit of an upload and its hint: workers must find the jobs by polling."""
    work = load.make(cluster, **_QUICK)
    key, _ = accounts.create_key(cluster.deps, work.user_id)
    port = ports.listen("127.0.0.1", 0, setting="the kit's port")
    port.set_inheritable(True)

    def start(point: str) -> Program:
        told = {"PPWORKER_CRASH_AT": point, ports.LISTEN_FD: str(port.fileno())}
        arguments = ["-m", "ppworker.process", "api"]
        return cluster.start("api", arguments, told, descriptors=[port.fileno()])

    def feed() -> None:
        path = f"/api/v1/datasets/{work.dataset.id}/versions/{work.split.version_id}/items"
        _post(
            ports.url(port) + path, key, {"text": "a text", "splits": [{"id": str(work.split.id)}]}
        )

    worker = cluster.start_worker(**victims.HEIR | {"PPWORKER_POLL_S": str(_POLL_S)})
    point = "after_upload_commit"
    try:
        deaths[point] = victims.let_die(start, point, times=times, chance=run.random, feed=feed)
        cluster.drain(seconds=_DRAIN_S)
    finally:
        port.close()
        worker.stop()
    run.say(point=point, deaths=deaths[point])
    items = cluster.one("SELECT count(*) FROM dataset_items")
    late = cluster.one(
        "SELECT count(*) FROM post_processor_jobs "
        "WHERE started_at - created_at > make_interval(secs => :most)",
        most=_CLAIM_S,
    )
    jobs = measure.totals(cluster).planned
    return [f"{items} items, {jobs} jobs"] * (items != jobs) + [
        f"{late} jobs were claimed later than {_CLAIM_S:g} s after their upload"
    ] * bool(late)


def _commands(run: Run, cluster: Cluster, times: int, deaths: dict[str, int]) -> list[str]:
    """A command is followed, and its message not acknowledged."""
    work = load.make(cluster, **_QUICK)
    sent = 0
    send = _sender(cluster, work)

    def feed() -> None:
        nonlocal sent
        send(sent)
        sent += 1

    point = "before_ack"
    start = victims.worker(cluster)
    deaths[point] = victims.let_die(start, point, times=times, chance=run.random, feed=feed)
    with victims.heir(cluster) as program:
        victims.wait_until(
            lambda: cluster.one("SELECT count(*) FROM dataset_items") >= sent,
            program, seconds=_DRAIN_S,
        )  # fmt: skip
        cluster.drain(seconds=_DRAIN_S)
    run.say(point=point, deaths=deaths[point])
    items = cluster.one("SELECT count(*) FROM dataset_items")
    letters = cluster.one("SELECT count(*) FROM dead_letters")
    return [f"{sent} commands became {items} items, {letters} dead letters"] * (
        items != sent or letters > 0
    )


def _operations(run: Run, cluster: Cluster, times: int, deaths: dict[str, int]) -> list[str]:
    """Inside a step of each kind of operation, and after its commit; where there is time for one
    death only, at either of the two in turn."""
    work = load.make(cluster, **_QUICK)
    work.add(ITEMS)
    with victims.heir(cluster):
        cluster.drain(seconds=_DRAIN_S)
    long_work = LongWork(work)
    for number, kind in enumerate(long_work.kinds):
        for name in _IN_AN_OPERATION if times > 1 else [_IN_AN_OPERATION[number % 2]]:
            point = f"{name}.{kind}"
            deaths[point] = victims.let_die(
                victims.worker(cluster),
                point,
                times=times,
                chance=run.random,
                feed=long_work.feed(kind),
                most=2,
            )
            run.say(point=point, deaths=deaths[point])
    with victims.heir(cluster) as program:
        victims.wait_until(lambda: not _live(cluster), program, seconds=_DRAIN_S)
    return long_work.broken()


def _sender(cluster: Cluster, work: Load) -> Callable[[int], None]:
    """Sends an upload as another program would, by dramatiq alone."""
    broker = RedisBroker(url=cluster.redis_url, namespace=NAMESPACE)  # type: ignore[no-untyped-call]

    def send(number: int) -> None:
        fields = {
            "schema_version": SCHEMA_VERSION,
            "key": f"command {number}",
            "user": load.USER,
            "split": f"{work.dataset.name}/train",
            "items": [{"name": f"{number}.txt", "text": f"text {number}"}],
        }
        broker.enqueue(
            dramatiq.Message[None](
                queue_name="commands", actor_name=TAKE_UPLOAD, args=(), kwargs=fields, options={}
            )
        )

    broker.declare_queue("commands")
    return send


def _post(url: str, key: str, body: object) -> None:
    """Send a request; that its server dies over it is the point."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = Request(url, data=json.dumps(body).encode(), headers=headers)  # noqa: S310  ours
    with suppress(URLError, OSError):
        build_opener(ProxyHandler({})).open(request, timeout=15).close()


def _pending(cluster: Cluster) -> int:
    return int(cluster.one("SELECT count(*) FROM post_processor_jobs WHERE status = 'pending'"))


def _live(cluster: Cluster) -> int:
    return int(
        cluster.one("SELECT count(*) FROM operations WHERE status IN ('pending', 'processing')")
    )


add(
    Scenario(
        name="crash-points",
        faults=["F2"],
        promise="Wherever a process dies, even between two statements of a transaction, what it "
        "was doing is finished by another one, as if nothing had been.",
        fault=f"SIGKILL at each of {len(POINTS)} named points, those of operations for each kind; "
        "none lies in the heartbeat",
        target=f"{_DEATHS} deaths at each point (the reference says 200), clean after all, "
        f"attempts used at most {_ATTEMPTS}",
        once=_once,
        quick_scale=0.05,
    )
)
