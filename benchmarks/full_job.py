"""The full item job: ppworker, the same job by hand, and the limit, side by side in each round."""

import subprocess
import sys
import time
from dataclasses import dataclass, field

import dramatiq
import psycopg
from dramatiq.brokers.redis import RedisBroker

from benchmarks import byhand, limit
from benchmarks.processes import ROOT, Fleet, cpu_s, memory_mb, python_path
from benchmarks.servers import Servers
from benchmarks.system import system

_WARM_UP = 400
_PATIENCE_S = 300.0


@dataclass(slots=True)
class Drain:
    """One drain of a backlog."""

    items: int
    seconds: float
    faults: list[str] = field(default_factory=list)
    cpu_ms: dict[str, float] = field(default_factory=dict)
    """CPU milliseconds per item, of workers, PostgreSQL and Redis."""
    rss_mb: tuple[float, float] | None = None
    """Of the larger worker process, before and after."""

    @property
    def rate(self) -> float:
        """Items per second."""
        return self.items / self.seconds


class _Meter:
    """CPU of workers and servers over a span of time."""

    def __init__(self, servers: Servers, fleet: Fleet) -> None:
        self._servers, self._fleet = servers, fleet
        self._before = self._read()

    def per_item_ms(self, items: int) -> dict[str, float]:
        after = self._read()
        return {k: round((after[k] - self._before[k]) * 1000 / items, 4) for k in after}

    def _read(self) -> dict[str, float]:
        return {
            "workers": cpu_s(self._fleet.pids()),
            "postgres": cpu_s(self._servers.postgres_pids()),
            "redis": cpu_s(self._servers.redis_pids()),
        }


def ppworker(servers: Servers, items: int) -> Drain:
    """Two real worker processes, nothing switched off."""
    with system(servers, "bench_ppworker") as our:
        warm = our.warm_up()
        before = max(memory_mb(pid)[0] for pid in our.fleet.workers())
        our.fleet.pause()
        our.upload(items)
        servers.settle("bench_ppworker")
        meter = _Meter(servers, our.fleet)
        started = time.monotonic()
        our.fleet.resume()
        seconds = our.wait() - started
        cpu_ms = meter.per_item_ms(items)
        after = max(memory_mb(pid)[0] for pid in our.fleet.workers())
        our.fleet.stop()
        return Drain(items, seconds, our.check(items + warm), cpu_ms, (before, after))


def by_hand(servers: Servers, items: int) -> Drain:
    """Plain dramatiq and psycopg, one item per message."""
    name = "bench_byhand"
    dsn = servers.fresh_database(name)
    servers.redis().flushall()
    environment = {
        "BENCH_DSN": dsn,
        "BENCH_REDIS_URL": servers.redis_url,
        "dramatiq_queue_prefetch": str(byhand.PREFETCH),
    }
    program = ["-m", "dramatiq", "-p", str(byhand.PROCESSES), "-t", str(byhand.THREADS)]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(byhand.SCHEMA)
        with Fleet(
            [sys.executable, *program, "benchmarks.byhand"],
            environment=environment,
            log=servers.folder / "byhand.log",
        ) as fleet:
            producer = RedisBroker(url=servers.redis_url, namespace="byhand")  # type: ignore[no-untyped-call]
            _send(producer, connection, _WARM_UP)
            _wait(connection, fleet)
            time.sleep(0.5)
            fleet.pause()
            _send(producer, connection, items)
            servers.settle(name)
            meter = _Meter(servers, fleet)
            started = time.monotonic()
            fleet.resume()
            seconds = _wait(connection, fleet) - started
            cpu_ms = meter.per_item_ms(items)
        return Drain(items, seconds, _faults(connection, items + _WARM_UP), cpu_ms)


def set_based_limit(servers: Servers, items: int) -> Drain:
    """Two processes, batches of 100, no queue: what the lean job can be at most."""
    name = "bench_limit"
    dsn = servers.fresh_database(name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(byhand.SCHEMA)
        connection.execute(byhand.LOAD, (items,))
        servers.settle(name)
        go = servers.folder / "go"
        go.unlink(missing_ok=True)
        started = [_limit_process(dsn, str(go)) for _ in range(2)]
        try:
            for process in started:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            begun = time.monotonic()
            go.touch()
            ends = [float(process.communicate(timeout=_PATIENCE_S)[0]) for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
        return Drain(items, max(ends) - begun, _faults(connection, items))


def _limit_process(dsn: str, go: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", limit.__name__, go],
        cwd=ROOT,
        env={"BENCH_DSN": dsn, "PYTHONPATH": python_path()},
        stdout=subprocess.PIPE,
        text=True,
    )


def _send(
    producer: RedisBroker, connection: psycopg.Connection[tuple[object, ...]], items: int
) -> None:
    for (job_id,) in connection.execute(byhand.LOAD, (items,)).fetchall():
        producer.enqueue(
            dramatiq.Message[None](
                queue_name="default",
                actor_name="item",
                args=(job_id,),
                kwargs={},
                options={},
            )
        )


def _wait(connection: psycopg.Connection[tuple[object, ...]], fleet: Fleet) -> float:
    """The same watch as for ppworker: every 10 ms, cheap until the last jobs are taken."""
    give_up = time.monotonic() + _PATIENCE_S
    for status in ("pending", "processing"):
        question = f"SELECT EXISTS (SELECT 1 FROM jobs WHERE status = '{status}')"
        while connection.execute(question).fetchone() == (True,):
            if time.monotonic() > give_up:
                raise RuntimeError("the job by hand did not finish")
            fleet.check()
            time.sleep(0.01)
    return time.monotonic()


def _faults(connection: psycopg.Connection[tuple[object, ...]], items: int) -> list[str]:
    row = connection.execute(byhand.CHECK).fetchone()
    names = ("completed", "jobs", "annotated", "annotations", "drift")
    wanted = (items, items, items, items, 0)
    assert row is not None
    return [
        f"{name}: {n}, not {w}" for name, n, w in zip(names, row, wanted, strict=True) if n != w
    ]
