"""The only place that builds parts: settings become collaborators; ``process`` joins them."""

from collections.abc import Callable, Iterable, Sequence
from math import inf
from threading import Event
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from ppworker import telemetry
from ppworker.domain.events import Event as Fact
from ppworker.errors import ConfigurationError
from ppworker.metrics import Metrics
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import refresh, rescue
from ppworker.pipeline.runs.retention import Retention
from ppworker.pipeline.setup import processor_changes
from ppworker.pipeline.transfer import shelf
from ppworker.settings import Settings
from ppworker.store import model_entries, overview, workers
from ppworker.store.blobs import BlobStore
from ppworker.store.connections import Limits
from ppworker.store.db import Database
from ppworker.worker.broker import HintBroker, connect
from ppworker.worker.sweeps import Sweep

if TYPE_CHECKING:
    from ppworker.worker.command_consumer import CommandConsumer

_RECOUNTS = 8
"""How often a process looks for splits to recount within the time that one recount is believed."""
_RECOUNT_S = 1.0
"""Seconds after which a sweep begins no further recount."""
_WORKER_UNSEEN_S = 300.0
"""Seconds after which a worker that is not seen leaves the register."""
_WALKING = 1 / 50
"""Share of its time that a worker process may spend on the removal of what is old, and as much on
the walk along the jobs that wait."""


def open_database(
    settings: Settings,
    *,
    name: str,
    connections: int | None = None,
    steady_plans: bool = False,
    limits: Limits | None = None,
    metrics: Metrics | None = None,
) -> Database:
    """Connect lazily to the configured database.

    Raises:
        ConfigurationError: none is configured, or its URL is malformed.
    """
    if settings.database_url is None:
        raise ConfigurationError(
            "PPWORKER_DATABASE_URL: not set, and this command does not start a server by itself"
        )
    told: dict[str, Any] = {}
    if metrics is not None:
        told = {"failed": metrics.database_failed, "came_back": metrics.database_came_back}
    return Database(
        settings.database_url.get_secret_value(),
        connections=connections or settings.connections,
        name=name,
        steady_plans=steady_plans,
        limits=limits,
        **told,
    )


def telling(metrics: Metrics) -> Callable[[Sequence[Fact]], None]:
    """What a process that is watched does with facts: log them, count them."""

    def emit(events: Sequence[Fact]) -> None:
        telemetry.emit(events)
        metrics.observe(events)

    return emit


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


def command_consumer(deps: Deps, *, stopping: Event) -> "CommandConsumer | None":
    """What takes commands in a worker; None without redis, where nobody can send any."""
    # Here: a command of the command line that follows none need not load what following takes.
    from ppworker.worker.command_consumer import CommandConsumer  # noqa: PLC0415
    from ppworker.worker.command_link import CommandLink  # noqa: PLC0415
    from ppworker.worker.commands import follow  # noqa: PLC0415

    if deps.settings.redis_url is None:
        return None

    def probe() -> None:
        with deps.db.look() as tx:
            overview.read_clock(tx)

    return CommandConsumer(
        CommandLink.from_url(deps.settings.redis_url.get_secret_value()),
        lambda taken: follow(deps, taken),
        probe,
        stopping=stopping,
    )


def _always() -> bool:
    return True


def sweeps(
    deps: Deps, *, may_rescue: Callable[[], bool] = _always, at_once: bool = False
) -> list[Sweep]:
    """Every periodic repair there is.

    Args:
        deps: the collaborators.
        may_rescue: whether a lease that has run out may be called abandoned now.
        at_once: remove all that is old in one run, instead of a little in each.
    """
    period = deps.settings.sweep_s
    walking = inf if at_once else _WALKING
    old = Retention(deps, budget_s=period * walking, rest_s=period * 60)
    ready_s = period * 6
    ready = rescue.Repair(deps, budget_s=ready_s * walking)

    def prune_workers() -> int:
        if not may_rescue():  # who was away with the server must not be forgotten for it
            return 0
        with deps.db.begin() as tx:
            return workers.prune(tx, unseen_s=_WORKER_UNSEEN_S)

    def prune_entries() -> int:
        with deps.db.begin() as tx:
            return model_entries.prune(tx)

    return [
        Sweep(
            name="rescue",
            run=lambda: rescue.rescue(deps) if may_rescue() else 0,
            every_s=period,
        ),
        Sweep(name="fold", run=lambda: refresh.fold(deps), every_s=period),
        Sweep(
            name="recount",
            run=lambda: refresh.recount(
                deps, age_s=deps.settings.recount_s, budget_s=inf if at_once else _RECOUNT_S
            ),
            every_s=max(period, deps.settings.recount_s / _RECOUNTS),
        ),
        Sweep(name="ready", run=ready.sweep, every_s=ready_s),
        Sweep(
            name="deleted",
            run=lambda: processor_changes.end_jobs_of_deleted(deps),
            every_s=period * 12,
        ),
        Sweep(name="workers", run=prune_workers, every_s=period * 12),
        Sweep(name="entries", run=prune_entries, every_s=period * 120),
        Sweep(name="old", run=old.sweep, every_s=period),
        Sweep(name="incoming", run=deps.blobs.prune_incoming, every_s=period * 120),
        Sweep(name="transfers", run=lambda: shelf.prune(deps), every_s=period * 120),
    ]
