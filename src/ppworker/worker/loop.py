"""One turn of a post-processor: claim, run, finish, again, until nothing is due or time is up."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from uuid import UUID

from ppworker.domain.inference import TASKS
from ppworker.domain.measurements import ClaimTried, TurnEnded
from ppworker.domain.post_processor import PostProcessor
from ppworker.domain.turns import first_priority, is_for_suspects
from ppworker.errors import Invalid, RunnerError, StoreUnavailable
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import execute, patience
from ppworker.pipeline.runs.label_cache import LabelCache
from ppworker.runners.base import RawAnswer, RunnerInput
from ppworker.runners.pool import Permit, RunnerPool, model_key
from ppworker.store import post_processors
from ppworker.store.claims import Places
from ppworker.worker.heartbeat import Heartbeat
from ppworker.worker.inside import Inside

log = logging.getLogger(__name__)

_GROWTH = 4
"""Most growth of a batch over the one before it: a first figure may mislead."""
_PLACES_LIFE_S = 1.0
"""Seconds for which the places of the last claims are remembered."""
_PACE_LIFE_S = 3600.0
"""Seconds after which the speed of a post-processor that had no turn is forgotten."""
_SMOOTHING = 0.5
_LOST = RunnerError(
    "its lease was lost before the model was asked", code="lease_lost", retryable=True
)
_REFRESH_GAP_S = 1.0
"""Least seconds between two wishes to fold label-stat deltas."""


@dataclass(slots=True)
class _Pace:
    """What is known of a post-processor's speed and place in its queue."""

    per_job_s: float | None = None
    last_size: int = 1
    places: Places = field(default_factory=dict)
    """Where the last claims of each priority ended."""
    places_since: float = 0.0
    claims: int = 0
    """Claims begun so far."""
    suspects_wait: bool = False
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
        ended: Callable[[UUID, int], None] = lambda _id, _jobs: None,
    ) -> None:
        """Build on collaborators; ``ended`` is told each turn's post-processor and jobs."""
        self._ended = ended
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
        self._missed: dict[tuple[str, str], dict[UUID, None]] = {}
        """By model, the post-processors that met it busy, in the order in which they came."""
        self.inside = Inside(hangs_after_s=deps.settings.sweep_s)
        """Who is in the models that share this process."""

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
            self._ended(post_processor_id, turn.jobs)
            self._deps.emit([TurnEnded(woken_by=woken_by, jobs=turn.jobs)])

    def _run_slice(self, post_processor_id: UUID, recruit: Callable[[], None], turn: _Turn) -> bool:
        with self._deps.db.look() as tx:
            processor = post_processors.find_post_processor(tx, post_processor_id)
        if processor is None:
            return False
        permit = self._permit(processor)
        if permit is None:
            return False
        model = model_key(processor.runner, processor.runner_config)
        with permit:
            has_more = self._work(processor, permit, recruit, turn)
            # Before the permit is given back: whoever came back first would have it again.
            again: set[UUID] = set()
            for id_ in self._take_missed(model):
                if id_ == processor.id or self._hand(id_, permit, model):
                    again.add(id_)
        again.update(self._take_missed(model))  # who came meanwhile found it busy too
        self._deps.hint(again - {processor.id})
        return has_more or processor.id in again

    def _hand(self, post_processor_id: UUID, permit: Permit, model: tuple[str, str]) -> bool:
        """Give one time slice to a post-processor that met this model busy; whether it has more."""
        turn = _Turn("wakeup")  # which was followed in vain
        try:
            with self._deps.db.look() as tx:
                processor = post_processors.find_post_processor(tx, post_processor_id)
            if processor is None:
                return False
            if model_key(processor.runner, processor.runner_config) != model:
                return True  # it was changed meanwhile
            return self._work(processor, permit, lambda: None, turn)
        except StoreUnavailable:
            raise
        except Exception:
            log.exception("post-processor %s: its time slice failed", post_processor_id)
            return False
        finally:
            self._ended(post_processor_id, turn.jobs)

    def _work(
        self, processor: PostProcessor, permit: Permit, recruit: Callable[[], None], turn: _Turn
    ) -> bool:
        until = time.monotonic() + self._deps.settings.slice_s
        pace = self._pace(processor.id)
        while not self._stopping.is_set():
            batch = self._run_next(processor, permit, pace, turn, recruit)
            if batch is None or not batch.jobs:
                return False
            # What a probe found out decides how the next batch is claimed.
            if batch.is_probe or time.monotonic() >= until:
                return batch.is_full
        return True

    def _run_next(
        self,
        processor: PostProcessor,
        permit: Permit,
        pace: _Pace,
        turn: _Turn,
        recruit: Callable[[], None],
    ) -> execute.Batch | None:
        """Claim one batch, of those whose turn it is, and carry it to its end."""
        with self._lock:
            number = pace.claims
            pace.claims += 1

        if pace.suspects_wait and is_for_suspects(number):
            batch = self._run_suspects(processor, permit, pace, turn)
            if batch is not None and batch.jobs:
                return batch
        batch = self._claim(
            turn,
            lambda: execute.claim(
                self._deps,
                processor,
                limit=self._size(processor, pace),
                first=first_priority(number),
                behind=self._places(pace),
                load_s=permit.load_s,
            ),
        )
        pace.suspects_wait = batch.suspects_wait
        if not batch.jobs and batch.suspects_wait:
            return self._run_suspects(processor, permit, pace, turn)
        if batch.jobs:
            if batch.is_full:
                pace.places = {**pace.places, **batch.places}
                pace.places_since = pace.places_since or time.monotonic()
                recruit()
            else:
                # It read from the beginning: the next one need not do so twice.
                pace.places, pace.places_since = {}, 0.0
            self._learn(pace, len(batch.jobs), self._run(processor, permit, batch))
        return batch

    def _run_suspects(
        self, processor: PostProcessor, permit: Permit, pace: _Pace, turn: _Turn
    ) -> execute.Batch | None:
        """The same for suspects, in a process of the model's own whatever it has otherwise: there
        a death blames nobody else, and takes no worker along."""
        apart: Permit | None = permit
        if permit.shares_process:
            apart = self._models.acquire(processor.runner, processor.runner_config, apart=True)
        if apart is None:
            return None  # another slot has it
        with apart if apart is not permit else nullcontext():
            batch = self._claim(
                turn,
                lambda: execute.claim_suspects(
                    self._deps,
                    processor,
                    limit=self._size(processor, pace),
                    load_s=apart.load_s,
                ),
            )
            if batch.jobs:
                self._run(processor, apart, batch)
        return batch

    def _run(self, processor: PostProcessor, permit: Permit, batch: execute.Batch) -> float:
        """Carry a batch to its end; returns seconds that its model took."""
        leases = {job.id: job.lease_token for job in batch.jobs}
        model = _Model(
            self._models,
            permit,
            lambda ids: self._heartbeat.confirmed({id_: leases[id_] for id_ in ids}),
            lambda: self.inside.watched(leases, limit_s=batch.deadline_s),
            lambda: self._heartbeat.ending(batch.jobs),
        )
        since = batch.claimed_at
        with self._heartbeat.holding(processor.id, batch.jobs, name=processor.name, since=since):
            execute.run(self._deps, self._labels, processor, model, batch)
        self._ask_refresh()
        return model.took_s

    def _claim(self, turn: _Turn, claim: Callable[[], execute.Batch]) -> execute.Batch:
        started, outcome, jobs = time.monotonic(), "error", 0
        try:
            batch = claim()
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
        model is busy, the slot that has it is told to serve this post-processor next, be it its own
        (its last look may have come before what woke this one) or one that shares the model.
        """
        try:
            if processor.model_type not in TASKS:  # a newer version may know it
                raise Invalid(f"model type '{processor.model_type}' is not known here")  # noqa: TRY301  told as the pool's
            permit = self._models.acquire(processor.runner, processor.runner_config)
            if permit is None:
                model = model_key(processor.runner, processor.runner_config)
                with self._lock:
                    self._missed.setdefault(model, {})[processor.id] = None
                # Once more: the other slot may have let go before it could be told.
                permit = self._models.acquire(processor.runner, processor.runner_config)
        except Invalid as error:
            if (processor.id, str(error)) not in self._warned:
                self._warned.add((processor.id, str(error)))
                log.warning("post-processor %s is left alone here: %s", processor.name, error)
            return None
        else:
            return permit

    def _take_missed(self, model: tuple[str, str]) -> list[UUID]:
        with self._lock:
            return list(self._missed.pop(model, ()))

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

    def _places(self, pace: _Pace) -> Places:
        if time.monotonic() - pace.places_since > _PLACES_LIFE_S:
            pace.places, pace.places_since = {}, 0.0
        return pace.places


class _Model:
    """A permit as the pipeline sees it, with a stop-watch; asks for what is still ours alone."""

    def __init__(
        self,
        models: RunnerPool,
        permit: Permit,
        confirmed: Callable[[Sequence[UUID]], set[UUID]] = set,
        watched: Callable[[], AbstractContextManager[None]] = nullcontext,
        ending: Callable[[], None] = lambda: None,
    ) -> None:
        self._models = models
        self._permit = permit
        self._confirmed = confirmed
        self._watched = watched if permit.shares_process else nullcontext
        self._ending = ending
        self.took_s = 0.0

    @property
    def shares_process(self) -> bool:
        return self._permit.shares_process

    def predict(
        self, inputs: Sequence[RunnerInput], *, timeout_s: float
    ) -> list[RawAnswer | RunnerError]:
        ours = self._still_ours([UUID(each.key) for each in inputs])
        asked = [each for each in inputs if UUID(each.key) in ours]
        started = time.monotonic()
        try:
            with self._watched():
                said = self._models.predict(self._permit, asked, timeout_s) if asked else []
        finally:
            self.took_s = time.monotonic() - started
        self._ending()
        answers = iter(said)
        # The fence refuses whatever is said about the others.
        return [next(answers) if UUID(each.key) in ours else _LOST for each in inputs]

    def _still_ours(self, job_ids: Sequence[UUID]) -> set[UUID]:
        """Which leases are still held; a database that is away is waited for if one is in doubt."""

        def ask(*, in_doubt: bool) -> set[UUID]:  # noqa: ARG001  renewing twice changes nothing
            return self._confirmed(job_ids)

        return patience.until_it_answers(ask)
