"""Two datasets whose post-processors share one model that takes one batch at a time."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from factories import World
from ppworker import wiring
from ppworker.domain.events import Event, JobMoved
from ppworker.domain.job import Status
from ppworker.pipeline.deps import Deps
from ppworker.runners.pool import RunnerPool
from ppworker.store import jobs
from ppworker.worker.actors import Handlers, declare_actors
from ppworker.worker.broker import connect
from ppworker.worker.heartbeat import Heartbeat
from ppworker.worker.loop import Loop
from ppworker.worker.poller import Poll
from ppworker.worker.process import run_worker
from ppworker.worker.signals import Signals
from redis_words import RedisServer, eventually

SLICE_S, MODEL_S = 0.2, 0.02
CLAIMS_A_SLICE = int(SLICE_S / MODEL_S) + 1
"""At most, however quick the machine is: each claim is one call of the model."""
SHARING: dict[str, Any] = {
    "runner": "scripted_runners:SerialRunner",
    "runner_config": {"seconds": MODEL_S},
    "batch_size": 1,
}


@dataclass
class Claims:
    """The names of the post-processors whose jobs were claimed, in their order."""

    names: list[str] = field(default_factory=list)

    def emit(self, events: Sequence[Event]) -> None:
        self.names += [
            each.post_processor
            for each in events
            if isinstance(each, JobMoved) and each.to is Status.PROCESSING
        ]


@pytest.fixture
def claims() -> Claims:
    return Claims()


@pytest.fixture
def hinting(tmp_path: Path, deps: Deps, claims: Claims) -> Iterator[Deps]:
    """The collaborators of an upload, beside a worker of two slots that follows its hints."""
    server = RedisServer(tmp_path)
    server.start()

    def poll() -> Poll:
        with deps.db.look() as tx:
            due, next_due_s = jobs.find_due(tx)
        return Poll(due=due, next_due_s=next_due_s)

    broker = connect(server.url, ask=poll, poll_s=1.0)
    settings = deps.settings.model_copy(update={"slice_s": SLICE_S})
    mine = wiring.build_deps(settings, deps.db, broker=broker, worker_id=uuid4(), emit=claims.emit)
    models = RunnerPool()
    loop = Loop(
        mine,
        models,
        Heartbeat(lambda _: set(), lambda: None, lease_s=30),
        refresh=lambda: None,
        stopping=broker.stopping,
        ended=broker.looks.ended,
    )
    declare_actors(broker, Handlers(run_slice=loop.run_slice, refresh=lambda: None))
    worker = threading.Thread(target=lambda: run_worker(broker, Signals(), threads=2, grace_s=5))
    worker.start()
    yield mine
    broker.stopping.set()
    worker.join(20)
    assert not worker.is_alive()
    broker.close()
    models.close()
    server.stop()


@pytest.mark.parametrize("has_backlog", [0, 1])
def test_a_backlog_of_one_leaves_the_other_its_turns(
    hinting: Deps, claims: Claims, has_backlog: int
) -> None:
    worlds = World(hinting), World(hinting)
    worlds[0].processor("first", **SHARING)
    worlds[1].processor("second", **SHARING)
    busy, quiet = worlds[has_backlog], worlds[1 - has_backlog]
    name = ("first", "second")[1 - has_backlog]
    busy.add(*("word" for _ in range(1000)))
    eventually(lambda: len(claims.names) > CLAIMS_A_SLICE, within_s=20)
    for _ in range(5):
        before = len(claims.names)
        quiet.add("one", "two", "three")
        eventually(lambda at=before: claims.names[at:].count(name) == 3, within_s=30)
        waited = claims.names[before:].index(name)
        assert waited <= 2 * CLAIMS_A_SLICE, claims.names[before:]
    assert "pending" in busy.statuses(), "the backlog lasted"
