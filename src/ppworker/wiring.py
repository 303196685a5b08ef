"""The only place that builds things: settings become collaborators, collaborators a process."""

import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Event
from uuid import UUID, uuid4

from ppworker import __version__, telemetry
from ppworker.domain.events import Event as Fact
from ppworker.errors import ConfigurationError, StoreUnavailable
from ppworker.pipeline import finish, refresh, rescue
from ppworker.pipeline.deps import Deps
from ppworker.runners.pool import RunnerPool
from ppworker.settings import Settings
from ppworker.store import jobs, schema, workers
from ppworker.store.blobs import BlobStore
from ppworker.store.db import Database
from ppworker.worker.actors import Handlers, declare_actors
from ppworker.worker.broker import HintBroker, connect
from ppworker.worker.heartbeat import Heartbeat
from ppworker.worker.loop import Loop
from ppworker.worker.parent import bind_to_parent
from ppworker.worker.poller import Poll
from ppworker.worker.process import run_worker
from ppworker.worker.signals import Signals
from ppworker.worker.sweeps import Sweep, Sweeper

_WORKER_UNSEEN_S = 300.0
"""Seconds after which a worker that is not seen leaves the register."""


def open_database(
    settings: Settings, *, name: str, connections: int | None = None, steady_plans: bool = False
) -> Database:
    """Connect lazily to the configured database.

    Raises:
        ConfigurationError: none is configured, or its URL is malformed.
    """
    if settings.database_url is None:
        raise ConfigurationError(
            "PPWORKER_DATABASE_URL: not set, and this command does not start a server by itself"
        )
    return Database(
        settings.database_url.get_secret_value(),
        connections=connections or settings.connections,
        name=name,
        steady_plans=steady_plans,
    )


def build_deps(
    settings: Settings,
    db: Database,
    *,
    broker: HintBroker | None = None,
    worker_id: UUID | None = None,
    emit: Callable[[Sequence[Fact]], None] = telemetry.emit,
) -> Deps:
    """The pipeline's collaborators; without a broker nobody is woken."""

    def hint(post_processor_ids: Iterable[UUID]) -> None:
        if broker is not None:
            for id_ in sorted(post_processor_ids):
                broker.hint(id_)

    return Deps(
        db=db,
        blobs=BlobStore(settings.data_dir.resolve() / "blobs"),
        settings=settings,
        emit=emit,
        hint=hint,
        worker_id=worker_id or uuid4(),
    )


def hint_broker(settings: Settings, **parts: object) -> HintBroker:
    """The broker of this process; a producer's when no parts are given."""
    url = settings.redis_url.get_secret_value() if settings.redis_url else None
    return connect(url, poll_s=settings.poll_s, **parts)  # type: ignore[arg-type]  # passed through


def sweeps(deps: Deps) -> list[Sweep]:
    """Every periodic repair there is."""
    period = deps.settings.sweep_s

    def prune_workers() -> int:
        with deps.db.begin() as tx:
            return workers.prune(tx, unseen_s=_WORKER_UNSEEN_S)

    return [
        Sweep(name="rescue", run=lambda: rescue.rescue(deps), every_s=period),
        Sweep(name="fold", run=lambda: refresh.fold(deps), every_s=period),
        Sweep(name="ready", run=lambda: rescue.repair_ready(deps), every_s=period * 6),
        Sweep(name="workers", run=prune_workers, every_s=period * 12),
    ]


def run_worker_process(settings: Settings, signals: Signals) -> bool:
    """Be one worker process until a signal; whether it ended as it should.

    Args:
        settings: with the database's URL.
        signals: entered by the caller, who leaves the process inside it.

    Raises:
        ConfigurationError: schema or settings do not fit.
        StoreUnavailable: PostgreSQL cannot be reached at the start.
    """
    worker_id = uuid4()
    telemetry.configure(settings, worker_id=worker_id)
    bind_to_parent()
    db = open_database(settings, name="ppworker worker", steady_plans=True)
    schema.check(db)
    broker = hint_broker(settings, ask=lambda: _poll(db), stopping=Event())
    deps = build_deps(settings, db, broker=broker, worker_id=worker_id)
    register = _register(deps)
    register()
    heartbeat = Heartbeat(lambda held: _extend(deps, held), register, lease_s=settings.lease_s)
    models = RunnerPool()
    loop = Loop(
        deps, models, heartbeat, refresh=broker.refresh_label_stats, stopping=broker.stopping
    )
    idle = Sweep(name="models", run=lambda: models.close_idle(settings.idle_unload_s), every_s=30)
    sweeper = Sweeper([*sweeps(deps), idle])
    declare_actors(broker, Handlers(run_slice=loop.run_slice, refresh=lambda: _fold(deps)))
    heartbeat.start()
    sweeper.start()
    in_time = run_worker(broker, signals, threads=settings.threads, grace_s=settings.grace_s)
    _release(deps, heartbeat)  # first: what follows may need longer than the supervisor waits
    sweeper.stop()
    heartbeat.stop()
    models.close()
    _forget(deps)
    broker.close()
    db.close()
    return in_time


def _poll(db: Database) -> Poll:
    with db.look() as tx:
        due, next_due_s = jobs.find_due(tx)
    return Poll(due=due, next_due_s=next_due_s)


def _extend(deps: Deps, held: Mapping[UUID, int]) -> set[UUID]:
    with deps.db.begin() as tx:
        return jobs.extend_leases(tx, held, lease_s=deps.settings.lease_s)


def _fold(deps: Deps) -> None:
    refresh.fold(deps)


def _register(deps: Deps) -> Callable[[], None]:
    def seen() -> None:
        with deps.db.begin() as tx:
            if not workers.mark_seen(tx, deps.worker_id):
                workers.register(
                    tx,
                    deps.worker_id,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    version=__version__,
                    slots=deps.settings.threads,
                )

    return seen


def _release(deps: Deps, heartbeat: Heartbeat) -> None:
    """Give back what a slot still holds after the grace; what cannot be told will be rescued."""
    held = heartbeat.held()
    if not held:
        return
    try:
        with deps.db.begin() as tx:
            names = jobs.names_of(tx, {processor_id for processor_id, _, _ in held.values()})
        finish.release(
            deps, names, {id_: (item_id, token) for id_, (_, item_id, token) in held.items()}
        )
    except StoreUnavailable as error:
        telemetry.warn("worker.release_failed", jobs=len(held), error=str(error))


def _forget(deps: Deps) -> None:
    try:
        with deps.db.begin() as tx:
            workers.forget(tx, deps.worker_id)
    except StoreUnavailable as error:
        telemetry.warn("worker.not_forgotten", error=str(error))
