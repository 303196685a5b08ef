"""One worker process: claims jobs, runs models, sweeps; put together, run and taken down."""

import os
import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from threading import Event
from uuid import UUID, uuid4

from ppworker import __version__, telemetry, wiring
from ppworker.errors import StoreUnavailable
from ppworker.metrics import Metrics, shared
from ppworker.monitoring.folder import Place
from ppworker.monitoring.vitals import Journal, Vitals
from ppworker.pipeline.control import operations
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import finish, refresh
from ppworker.runners.pool import RunnerPool
from ppworker.settings import Settings
from ppworker.store import jobs, post_processors, schema, workers
from ppworker.store.connections import WORKER_LIMITS
from ppworker.store.db import Database
from ppworker.worker.actors import Handlers, declare_actors
from ppworker.worker.broker import HintBroker
from ppworker.worker.command_consumer import CommandConsumer
from ppworker.worker.heartbeat import Heartbeat, beat_limit_s
from ppworker.worker.loop import Loop
from ppworker.worker.operations import OperationThread
from ppworker.worker.parent import bind_to_parent
from ppworker.worker.poller import Poll
from ppworker.worker.process import SLOT_HANGS, leave, run_worker
from ppworker.worker.signals import Signals
from ppworker.worker.sweeps import Sweep, Sweeper, Swept

_POLL_LIMIT_S = 10.0
"""Seconds that a look for work may take; then its connection is cut."""
_END_S = 1.5
"""Seconds past the end of the slots for all that runs beside them: what hangs by then is left
behind, for the supervisor kills what is not gone five seconds after the grace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What a worker process consists of."""

    deps: Deps
    broker: HintBroker
    journal: Journal
    heartbeat: Heartbeat
    models: RunnerPool
    loop: Loop
    sweeper: Sweeper
    operating: OperationThread
    commands: CommandConsumer | None


def run(settings: Settings, signals: Signals, place: Place) -> bool:
    """Be one worker process until a signal; whether it ended as it should.

    Args:
        settings: with the database's URL.
        signals: entered by the caller, who leaves the process inside it.
        place: where this process stands among those of its supervisor.

    Raises:
        ConfigurationError: schema or settings do not fit.
        StoreUnavailable: PostgreSQL cannot be reached at the start.
    """
    parts = _build(settings, place)
    _start(parts)
    in_time = run_worker(
        parts.broker,
        signals,
        threads=settings.threads,
        grace_s=settings.grace_s,
        tick=parts.journal.note,
        draining=lambda: _drain(parts.journal, parts.heartbeat),
        hung=lambda: len(parts.loop.inside.hung()),
    )
    _end(parts)
    return in_time


def _build(settings: Settings, place: Place) -> _Parts:
    """Connect, be registered, and put together what `_start` starts."""
    worker_id = uuid4()
    metrics = shared(place.folder, place.slot)
    telemetry.configure(settings, worker_id=worker_id, lost=metrics.log_lines_lost)
    bind_to_parent()
    deps, broker = _connect(settings, metrics, worker_id)
    register = _register(deps, broker.stopping)
    register()
    journal = Journal(
        place,
        version=__version__,
        worker=str(worker_id),
        slots=settings.threads,
        look=lambda vitals: _look(vitals, deps.db, broker, heartbeat),
    )
    heartbeat = Heartbeat(
        lambda held: _extend(deps, held),
        register,
        lease_s=settings.lease_s,
        turned=lambda is_renewed: journal.beat(is_renewed=is_renewed),
        lost=metrics.leases_lost,
    )
    models = RunnerPool()
    loop = Loop(
        deps,
        models,
        heartbeat,
        refresh=broker.refresh_label_stats,
        stopping=broker.stopping,
        ended=broker.looks.ended,
    )
    declare_actors(broker, Handlers(run_slice=loop.run_slice, refresh=lambda: _fold(deps)))
    idle = Sweep(name="models", run=lambda: models.close_idle(settings.idle_unload_s), every_s=30)
    repairs = wiring.sweeps(deps, may_rescue=lambda: _may_rescue(deps))
    return _Parts(
        deps=deps,
        broker=broker,
        journal=journal,
        heartbeat=heartbeat,
        models=models,
        loop=loop,
        sweeper=Sweeper([*repairs, idle], swept=_swept(metrics, journal)),
        operating=OperationThread(
            lambda until: operations.run(deps, STEPS, until=until) is not None,
            poll_s=settings.poll_s,
            slice_s=4 * settings.slice_s,
            stopping=broker.stopping,
        ),
        commands=wiring.command_consumer(deps, stopping=broker.stopping),
    )


def _connect(settings: Settings, metrics: Metrics, worker_id: UUID) -> tuple[Deps, HintBroker]:
    db = wiring.open_database(
        settings,
        name="ppworker worker",
        steady_plans=True,
        limits=WORKER_LIMITS,
        metrics=metrics,
    )
    schema.check(db)
    broker = wiring.hint_broker(
        settings, ask=_polling(db), stopping=Event(), counted=metrics.hint_counted
    )
    deps = wiring.build_deps(
        settings, db, broker=broker, worker_id=worker_id, emit=wiring.telling(metrics)
    )
    return deps, broker


def _start(parts: _Parts) -> None:
    parts.heartbeat.start()
    parts.sweeper.start()
    parts.operating.start()
    if parts.commands is not None:
        parts.commands.start()
    parts.journal.beat(is_renewed=True)  # it has just registered
    parts.journal.begin()


def _end(parts: _Parts) -> None:
    """Take down what runs; ends the process where a slot hangs."""
    deps, broker = parts.deps, parts.broker
    hung = frozenset[UUID]().union(*parts.loop.inside.hung())
    # First: what follows may need longer than the supervisor waits.
    _release(deps, parts.heartbeat, but=hung)
    _stop(parts.commands, parts.operating, parts.sweeper, parts.heartbeat)
    if hung:
        telemetry.warn("worker.slot_hangs", jobs=len(hung))
        _forget(deps)
        broker.wait_sent()  # hints of what was given back
        leave(SLOT_HANGS)  # the rest may wait for what hangs
    parts.models.close()
    _forget(deps)
    broker.close()
    deps.db.close()


def _stop(*parts: CommandConsumer | OperationThread | Sweeper | Heartbeat | None) -> None:
    """End what runs beside the slots, all of it within one span of time."""
    ends_at = time.monotonic() + _END_S
    for part in parts:
        if part is not None:
            part.stop(wait_s=max(0.0, ends_at - time.monotonic()))


def _may_rescue(deps: Deps) -> bool:
    with deps.db.look() as tx:
        return workers.may_rescue(tx, deps.worker_id)


def _swept(metrics: Metrics, journal: Journal) -> Swept:
    def swept(name: str, is_ok: bool, seconds: float) -> None:  # noqa: FBT001  the sweeper's shape
        metrics.swept(name, is_ok=is_ok, seconds=seconds, at=time.time())
        if is_ok:
            journal.swept()

    return swept


def _polling(db: Database) -> Callable[[], Poll]:
    datasets: dict[UUID, UUID] = {}

    def poll() -> Poll:
        with db.look() as tx:
            due, next_due_s = jobs.find_due(tx)
            if unknown := set(due) - datasets.keys():
                datasets.update(post_processors.datasets_of(tx, unknown))
        return Poll(due=due, next_due_s=next_due_s, datasets=datasets)

    return poll


def _extend(deps: Deps, held: Mapping[UUID, int]) -> set[UUID]:
    with deps.db.begin(limit_s=beat_limit_s(deps.settings.lease_s)) as tx:
        return jobs.extend_leases(tx, held, lease_s=deps.settings.lease_s)


def _fold(deps: Deps) -> None:
    refresh.fold(deps)


def _look(vitals: Vitals, db: Database, broker: HintBroker, heartbeat: Heartbeat) -> None:
    vitals.looked_at = broker.looked_at
    vitals.busy = broker.slots.running().total()
    vitals.in_progress = dict(heartbeat.in_progress())
    vitals.connections = db.in_use


def _drain(journal: Journal, heartbeat: Heartbeat) -> None:
    journal.drain()
    heartbeat.soon()  # which tells the register, in its own thread


def _register(deps: Deps, stopping: Event) -> Callable[[], float | None]:
    lease_s = deps.settings.lease_s

    def seen() -> float | None:
        with deps.db.begin(limit_s=beat_limit_s(lease_s)) as tx:
            is_stopping = stopping.is_set()
            shortest_s = workers.mark_seen(tx, deps.worker_id, draining=is_stopping)
            if shortest_s is None:
                workers.register(
                    tx,
                    deps.worker_id,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    version=__version__,
                    slots=deps.settings.threads,
                    lease_s=lease_s,
                )
            return shortest_s

    return seen


def _release(deps: Deps, heartbeat: Heartbeat, *, but: Collection[UUID] = ()) -> None:
    """Give back what a slot still holds after the grace; what cannot be told will be rescued, and
    so will those that hang: they are suspects, not guests of a stopping worker."""
    held = {id_: lease for id_, lease in heartbeat.held().items() if id_ not in but}
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
