"""Every background service, started and stopped a hundred times: nothing is left behind."""

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from uuid import uuid4

import pytest
import sqlalchemy as sa

from ppworker import wiring
from ppworker.pipeline.deps import Deps
from ppworker.store.db import Database
from ppworker.worker.actors import Handlers, declare_actors
from ppworker.worker.broker import connect
from ppworker.worker.command_consumer import CommandConsumer
from ppworker.worker.command_link import CommandLink
from ppworker.worker.heartbeat import Heartbeat
from ppworker.worker.operations import OperationThread
from ppworker.worker.poller import Poll
from ppworker.worker.process import run_worker
from ppworker.worker.signals import Signals
from ppworker.worker.sweeps import Sweep, Sweeper
from redis_words import RedisServer, eventually

TIMES = 100
FILES = Path("/proc/self/fd")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path)
    running.start()
    yield running
    running.stop()


def heartbeat(_: str, deps: Deps) -> None:
    turned = Event()

    def beat() -> None:
        with deps.db.look() as tx:
            tx.execute(sa.text("SELECT 1"))

    service = Heartbeat(lambda _: set(), beat, lease_s=0.03, turned=lambda _: turned.set())
    service.start()
    assert turned.wait(10)
    service.stop()


def sweeper(_: str, deps: Deps) -> None:
    swept = Event()
    sweeps = [Sweep(name=s.name, run=s.run, every_s=0.01) for s in wiring.sweeps(deps)]
    service = Sweeper(sweeps, swept=lambda *_: swept.set())
    service.start()
    assert swept.wait(10)
    service.stop()


def operations(_: str, deps: Deps) -> None:
    turned = Event()

    def run(_until: Callable[[], bool]) -> bool:
        with deps.db.look() as tx:
            tx.execute(sa.text("SELECT 1"))
        turned.set()
        return False

    service = OperationThread(run, poll_s=0.01, slice_s=1, stopping=Event())
    service.start()
    assert turned.wait(10)
    service.stop()


def commands(url: str, _: Deps) -> None:
    service = CommandConsumer(
        CommandLink.from_url(url), lambda _: None, lambda: None, stopping=Event()
    )
    service.start()
    assert service.stop(wait_s=5)


def sending(url: str, _: Deps) -> None:
    broker = connect(url)
    broker.hint(uuid4())
    broker.close()
    assert broker.counts["failed"] == 0


def following(url: str, _: Deps) -> None:
    """Broker, consumer, poller and slots, as in a worker."""
    polled = Event()

    def poll() -> Poll:
        polled.set()
        return Poll(())

    broker = connect(url, ask=poll)
    declare_actors(broker, Handlers(lambda _id, _recruit, _woken_by: False, lambda: None))
    thread = threading.Thread(target=lambda: run_worker(broker, Signals(), threads=1, grace_s=1))
    thread.start()
    assert polled.wait(10)
    broker.hint(uuid4())
    broker.stopping.set()
    thread.join(20)
    assert not thread.is_alive()
    broker.close()


def open_files() -> int:
    return len(list(FILES.iterdir())) if FILES.exists() else 0


@pytest.mark.parametrize(
    "service",
    [
        heartbeat,
        sweeper,
        operations,
        sending,
        # Each takes half a second to end: as long as a question to redis, and as dramatiq's threads.
        pytest.param(commands, marks=pytest.mark.long),
        pytest.param(following, marks=pytest.mark.long),
    ],
    ids=lambda service: service.__name__,
)
def test_a_service_started_and_stopped_a_hundred_times_leaves_nothing_behind(
    service: Callable[[str, Deps], None], deps: Deps, db: Database, server: RedisServer
) -> None:
    def sessions() -> int:
        with db.look() as tx:
            return int(
                tx.execute(
                    sa.text(
                        "SELECT count(*) FROM pg_stat_activity WHERE datname=current_database()"
                    )
                ).scalar_one()
            )

    service(server.url, deps)  # what is made once and kept
    gc.collect()
    threads, files, connections = threading.active_count(), open_files(), sessions()
    for _ in range(TIMES):
        service(server.url, deps)
    gc.collect()
    eventually(lambda: threading.active_count() <= threads)
    eventually(lambda: open_files() <= files + 2)
    assert sessions() <= connections + 2, "a pool may grow by what met at once, not by each start"
