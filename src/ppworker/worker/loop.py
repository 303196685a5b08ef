"""One turn of a post-processor: claim, run, finish, again, until nothing is due or time is up."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from ppworker.domain.measurements import ClaimTried, TurnEnded
from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import Invalid, RunnerError
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import execute
from ppworker.pipeline.runs.label_cache import LabelCache
from ppworker.runners.base import RawAnswer, RunnerInput
from ppworker.runners.pool import Permit, RunnerPool
from ppworker.store import post_processors
from ppworker.store.jobs import Bound
from ppworker.worker.heartbeat import Heartbeat

log = logging.getLogger(__name__)

_GROWTH = 4
"""Most growth of a batch over the one before it: a first figure may mislead."""
_BOUND_LIFE_S = 1.0
"""Seconds for which the place of the last claim is remembered."""
_PACE_LIFE_S = 3600.0
"""Seconds after which the speed of a post-processor that had no turn is forgotten."""
_SMOOTHING = 0.5
_REFRESH_GAP_S = 1.0
"""Least seconds between two wishes to fold label-stat deltas."""


@dataclass(slots=True)
class _Pace:
    """What is known of a post-processor's speed and place in its queue."""

    per_job_s: float | None = None
    last_size: int = 1
    bound: Bound | None = None
    bound_at: float = 0.0
    used_at: float = 0.0


@dataclass(slots=True)
class _Turn:
    """One time slice of a post-processor."""

    woken_by: str
    jobs: int = 0
    """Claimed in it so far."""


class Loop:
    """Turns of post-processors in one worker process, shared by its slots."""

    def __init__(
        self,
        deps: Deps,
        models: RunnerPool,
        heartbeat: Heartbeat,
        *,
        refresh: Callable[[], object],
        stopping: threading.Event,
    ) -> None:
        self._deps = deps
        self._models = models
        self._heartbeat = heartbeat
        self._labels = LabelCache(deps.db)
        self._refresh = refresh
        self._refreshed_at = 0.0
        self._stopping = stopping
        self._lock = threading.Lock()
        self._paces: dict[UUID, _Pace] = {}
        self._warned: set[tuple[UUID, str]] = set()
        self._missed: set[UUID] = set()

    def run_slice(
        self, post_processor_id: UUID, recruit: Callable[[], None], woken_by: str = "wakeup"
    ) -> bool:
        """Work on a post-processor for one time slice; whether more is due that could start now.

        Calls ``recruit`` when a claim came back full, so that another slot joins. ``woken_by``
        says what began it, for the figures.

        Raises:
            StoreUnavailable: PostgreSQL is away; polling will bring the work back.
        """
        turn = _Turn(woken_by)
        try:
            return self._run_slice(post_processor_id, recruit, turn)
        finally:
            self._deps.emit([TurnEnded(woken_by=woken_by, jobs=turn.jobs)])

    def _run_slice(self, post_processor_id: UUID, recruit: Callable[[], None], turn: _Turn) -> bool:
        with self._deps.db.look() as tx:
            processor = post_processors.find_post_processor(tx, post_processor_id)
        if processor is None:
            return False
        permit = self._permit(processor)
        if permit is None:
            return False
        with permit:
            has_more = self._work(processor, permit, recruit, turn)
        return has_more or self._was_missed(post_processor_id)

    def _work(
        self, processor: PostProcessor, permit: Permit, recruit: Callable[[], None], turn: _Turn
    ) -> bool:
        until = time.monotonic() + self._deps.settings.slice_s
        model = _Model(self._models, permit)
        pace = self._pace(processor.id)
        while not self._stopping.is_set():
            batch = self._claim(processor, pace, turn)
            if not batch.jobs:
                return False
            pace.bound, pace.bound_at = batch.bound, pace.bound_at or time.monotonic()
            if batch.is_full:
                recruit()
            with self._heartbeat.holding(processor.id, batch.jobs, name=processor.name):
                execute.run(self._deps, self._labels, processor, model, batch)
            self._ask_refresh()
            self._learn(pace, len(batch.jobs), model.took_s)
            if time.monotonic() >= until:
                return batch.is_full
        return True

    def _claim(self, processor: PostProcessor, pace: _Pace, turn: _Turn) -> execute.Batch:
        limit = self._size(processor, pace)
        started, outcome, jobs = time.monotonic(), "error", 0
        try:
            batch = execute.claim(self._deps, processor, limit=limit, behind=self._bound(pace))
            jobs = len(batch.jobs)
            turn.jobs += jobs
            outcome = "hit" if jobs else "empty"
            return batch
        finally:
            took_s = time.monotonic() - started
            self._deps.emit(
                [ClaimTried(woken_by=turn.woken_by, outcome=outcome, jobs=jobs, seconds=took_s)]
            )

    def _permit(self, processor: PostProcessor) -> Permit | None:
        """The right to use the model, asked for before anything is claimed.

        A runner that this process does not know leaves its jobs to processes that do. Where the
        model is busy, the slot that has it is told to look once more: its last look may have come
        before what woke this one.
        """
        try:
            permit = self._models.acquire(processor.runner, processor.runner_config)
            if permit is None:
                with self._lock:
                    self._missed.add(processor.id)
                # Once more: the other slot may have let go before it could be told.
                permit = self._models.acquire(processor.runner, processor.runner_config)
        except Invalid as error:
            if (processor.id, str(error)) not in self._warned:
                self._warned.add((processor.id, str(error)))
                log.warning("post-processor %s is left alone here: %s", processor.name, error)
            return None
        else:
            return permit

    def _was_missed(self, post_processor_id: UUID) -> bool:
        with self._lock:
            if post_processor_id not in self._missed:
                return False
            self._missed.discard(post_processor_id)
            return True

    def _ask_refresh(self) -> None:
        """Have the deltas folded, about once a second; the sweep folds what comes between."""
        now = time.monotonic()
        if now - self._refreshed_at >= _REFRESH_GAP_S:
            self._refreshed_at = now
            self._refresh()

    def _pace(self, post_processor_id: UUID) -> _Pace:
        now = time.monotonic()
        with self._lock:
            if post_processor_id not in self._paces:
                self._paces = {
                    id_: pace
                    for id_, pace in self._paces.items()
                    if now - pace.used_at < _PACE_LIFE_S
                }
            pace = self._paces.setdefault(post_processor_id, _Pace())
            pace.used_at = now
            return pace

    def _size(self, processor: PostProcessor, pace: _Pace) -> int:
        """About ``batch_target_s`` of model time: slow models one by one, tiny ones by hundreds."""
        if pace.per_job_s is None:
            return 1
        fitting = int(self._deps.settings.batch_target_s / max(pace.per_job_s, 1e-6))
        return max(1, min(fitting, pace.last_size * _GROWTH, processor.batch_size))

    def _learn(self, pace: _Pace, jobs: int, took_s: float) -> None:
        per_job_s = took_s / jobs
        if pace.per_job_s is not None:
            per_job_s = _SMOOTHING * per_job_s + (1 - _SMOOTHING) * pace.per_job_s
        pace.per_job_s = per_job_s
        pace.last_size = max(jobs, pace.last_size // 2)

    def _bound(self, pace: _Pace) -> Bound | None:
        if time.monotonic() - pace.bound_at > _BOUND_LIFE_S:
            pace.bound, pace.bound_at = None, 0.0
        return pace.bound


class _Model:
    """A permit as the pipeline sees it, with a stop-watch."""

    def __init__(self, models: RunnerPool, permit: Permit) -> None:
        self._models = models
        self._permit = permit
        self.took_s = 0.0

    def predict(
        self, inputs: Sequence[RunnerInput], *, timeout_s: float
    ) -> list[RawAnswer | RunnerError]:
        started = time.monotonic()
        try:
            return self._models.predict(self._permit, inputs, timeout_s)
        finally:
            self.took_s = time.monotonic() - started
