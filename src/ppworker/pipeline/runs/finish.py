"""Ends attempts: what each answer becomes, and the one transaction that writes a batch of them.

The order inside the transaction is the protocol: items, jobs under their fence, labels; then reads
that decide; then writes; then the readiness of successors. The number of statements does not
depend on the size of the batch.
"""

import json
import logging
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from ppworker import crash_points
from ppworker.domain.drop import Reason, add_counts
from ppworker.domain.events import Event
from ppworker.domain.job import (
    ENDS,
    INVALID,
    ITEM_DELETED,
    Attempt,
    Outcome,
    Status,
    Transition,
    decide,
)
from ppworker.domain.measurements import BatchFinished
from ppworker.domain.post_processor import PostProcessor, input_revision
from ppworker.errors import StoreRefused
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import facts, outputs, patience
from ppworker.pipeline.runs.answers import Ended, Mapped, map_answers
from ppworker.pipeline.runs.label_cache import LabelCache
from ppworker.store import items, job_operations, jobs, post_processors, results
from ppworker.store.blobs import text_sha256
from ppworker.store.db import Tx

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a batch went."""

    completed: int = 0
    failed: int = 0
    again: int = 0
    """Back to pending, whatever the cause."""
    lost: int = 0
    """Dropped because the lease was somebody else's."""

    def plus(self, other: "Report") -> "Report":
        """Both together."""
        return Report(
            completed=self.completed + other.completed,
            failed=self.failed + other.failed,
            again=self.again + other.again,
            lost=self.lost + other.lost,
        )


@dataclass(slots=True)
class _Plan:
    """What one transaction will write."""

    moves: list[jobs.Move] = field(default_factory=list)
    output: outputs.Plan = field(default_factory=outputs.Plan)
    answers: list[results.Result] = field(default_factory=list)


def finish(
    deps: Deps, cache: LabelCache, processor: PostProcessor, ended: Sequence[Ended]
) -> Report:
    """Write the ends of a batch of attempts, each under its own fence.

    A batch that PostgreSQL refuses is halved until the one refused answer stands alone; that job
    fails, the others keep their answers. So is one with an answer that the program stumbles over;
    that job is tried again, as far as its budget goes. While PostgreSQL is away the batch waits.

    Raises:
        StoreUnavailable: PostgreSQL stayed away; the leases will expire and be rescued.
    """
    if not ended:
        return Report()
    try:
        return _write_patiently(deps, cache, processor, ended)
    except (StoreRefused, *_BUGS) as error:
        if len(ended) > 1:
            middle = len(ended) // 2
            first = finish(deps, cache, processor, ended[:middle])
            return first.plus(finish(deps, cache, processor, ended[middle:]))
        if ended[0].answer is None:
            raise
        blamed = Ended(job=ended[0].job, outcome=_blamed(ended[0], error))
        return finish(deps, cache, processor, [blamed])


_BUGS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a program stumbles over that meets a row or an answer it was not written for."""


def _blamed(ended: Ended, error: Exception) -> Outcome:
    """The end of the one attempt whose answer cannot be written."""
    if isinstance(error, StoreRefused):
        return Outcome(kind="error", code="refused_data", message=f"not stored: {error}")
    log.error("job %s: its answer could not be worked with", ended.job.id, exc_info=error)
    message = f"{type(error).__name__}: {error}"[:500]
    return Outcome(kind="error", code="program_error", message=message, retryable=True)


def _write_patiently(
    deps: Deps, cache: LabelCache, processor: PostProcessor, ended: Sequence[Ended]
) -> Report:
    def write(*, in_doubt: bool) -> Report:
        if in_doubt:
            return _write_unless_written(deps, cache, processor, ended)
        return _write_as_of_today(deps, cache, processor, ended)

    return patience.until_it_answers(write)


def _write_unless_written(
    deps: Deps, cache: LabelCache, processor: PostProcessor, ended: Sequence[Ended]
) -> Report:
    """Decide a COMMIT whose answer was lost: read again under lock, then write what is missing.

    The lock waits for a COMMIT that is still in flight; an unlocked read would not see it.
    """
    held = {each.job.id: each.job.lease_token for each in ended}

    def read(tx: Tx) -> tuple[dict[UUID, jobs.EndedAttempt], set[UUID]]:
        items.lock_items(tx, [each.job.item_id for each in ended])
        jobs.lock_leased(tx, held)
        found = jobs.finished_by(tx, held, deps.worker_id)
        there = [each.job.item_id for each in ended if each.job.id in found]
        return found, job_operations.find_ready(tx, there)

    written, woken = deps.db.transact(read)
    # Nobody was told after that COMMIT: what the rows still say of it is told now.
    deps.emit(
        [
            facts.ended_event(processor.name, each.job, written[each.job.id])
            for each in ended
            if each.job.id in written
        ]
    )
    deps.hint(woken)
    missing = [each for each in ended if each.job.id not in written]
    done = _report(Counter(ENDS[attempt.cause] for attempt in written.values()), lost=0)
    if not missing:
        return done
    return done.plus(_write_as_of_today(deps, cache, processor, missing))


class _SettingsChanged(Exception):  # noqa: N818  control flow of this module, never seen outside
    """The post-processor's settings are not those by which the answers were mapped."""


def _write_as_of_today(
    deps: Deps, cache: LabelCache, processor: PostProcessor, ended: Sequence[Ended]
) -> Report:
    """Map and write, again where the settings changed since they were read.

    What a reapply leaves to a live job is then written with the reapply's settings or newer ones.
    """
    while True:
        try:
            return _write(deps, processor, map_answers(deps, cache, processor, ended))
        except _SettingsChanged:
            with deps.db.look() as tx:
                today = post_processors.find_post_processor(tx, processor.id)
            # One that was deleted meanwhile has no settings of today.
            processor = today or replace(processor, revision="")


def _write(deps: Deps, processor: PostProcessor, mapped: Sequence[Mapped]) -> Report:
    by_id = {each.ended.job.id: each for each in mapped}
    tokens = {id_: each.ended.job.lease_token for id_, each in by_id.items()}
    label_ids = {label_id for each in mapped if each.drafted for _, label_id in each.drafted.drafts}

    def work(tx: Tx) -> tuple[_Plan, set[UUID], list[Event]]:
        locked = items.lock_items(tx, [each.ended.job.item_id for each in mapped])
        held = jobs.lock_leased(tx, tokens, settings_of=processor.id)
        if processor.revision and held and held[0].settings not in {None, processor.revision}:
            raise _SettingsChanged
        read = outputs.read(tx, [(job.item_id, job.version_id) for job in held], label_ids)
        plan = _Plan()
        for job in held:
            _decide(plan, processor, job, by_id[job.id], locked.get(job.item_id), read)
        outputs.write(tx, plan.output)
        results.write_results(tx, plan.answers)
        jobs.move(tx, plan.moves)
        failed = [m.job.id for m in plan.moves if m.transition.to is Status.FAILED]
        stopped = jobs.stop_successors(tx, failed)
        woken = jobs.recompute_ready(tx, [job.item_id for job in held])
        if any(m.transition.to is Status.PENDING and not m.transition.delay_s for m in plan.moves):
            woken.add(processor.id)
        crash_points.reach("in_finish")
        moved = [facts.moved_event(processor.name, m.job, m.transition) for m in plan.moves]
        return plan, woken, [*moved, *facts.stopped_events(stopped)]

    started = time.monotonic()
    plan, woken, events = deps.db.transact(work)
    crash_points.reach("after_finish_commit")
    took_s = time.monotonic() - started
    held_ids = {m.job.id for m in plan.moves}
    lost = [each.ended.job for each in mapped if each.ended.job.id not in held_ids]
    measured: list[Event] = [
        outputs.written(processor.name, plan.output),
        BatchFinished(post_processor=processor.name, seconds=took_s),
    ]
    deps.emit([*events, *facts.refused_events(processor.name, lost), *measured])
    deps.hint(woken)
    return _report(Counter(m.transition.to for m in plan.moves), lost=len(lost))


def _report(ends: Counter[Status], *, lost: int) -> Report:
    return Report(
        completed=ends[Status.COMPLETED],
        failed=ends[Status.FAILED],
        again=ends[Status.PENDING],
        lost=lost,
    )


def _decide(
    plan: _Plan,
    processor: PostProcessor,
    job: jobs.HeldJob,
    mapped: Mapped,
    item: items.LockedItem | None,
    read: outputs.Read,
) -> None:
    """Add to the plan what becomes of one held job, by the pure rules."""
    transition = _transition(processor, job, mapped.ended, item)
    answer, drafted = mapped.ended.answer, mapped.drafted
    if not transition.keep_result or answer is None or drafted is None or item is None:
        plan.moves.append(jobs.Move(job=job, transition=transition))
        return
    origin = outputs.Origin(
        job.id, job.item_id, job.version_id, mapped.ended.job.user_id, answer.model_version
    )
    _, dropped = outputs.add(
        plan.output, processor, origin, drafted, read, multi_label=answer.target.multi_label
    )
    if answer.refused:
        dropped.append({"refused_values": answer.refused})
    if drafted.text is not None and item.text_edited:
        dropped.append({str(Reason.TEXT_EDITED): 1})
    elif drafted.text is not None:
        plan.output.texts[job.item_id] = drafted.text
    plan.answers.append(
        results.Result(
            version_id=job.version_id,
            item_id=job.item_id,
            post_processor_id=processor.id,
            job_id=job.id,
            raw=answer.raw,
            model_version=answer.model_version,
            input_revision=job.input_revision,
            text_sha256=item.text_sha256 if drafted.text is None else text_sha256(drafted.text),
            refused=answer.refused,
        )
    )
    counted = json.dumps(add_counts(*dropped)) if any(dropped) else "{}"
    plan.moves.append(jobs.Move(job=job, transition=transition, dropped=counted))


_DELETED = Outcome(kind="error", code=ITEM_DELETED, message="the item was deleted meanwhile")
_VERSION_DELETED = Outcome(
    kind="error", code=ITEM_DELETED, message="the version of the item was deleted meanwhile"
)

_NO_VERSION = Outcome(
    kind="error", code=INVALID, message="the version that the job names does not exist"
)


def _transition(
    processor: PostProcessor, job: jobs.HeldJob, ended: Ended, item: items.LockedItem | None
) -> Transition:
    """The rule for a job whose item was read again under its lock."""
    if item is None or item.deleted_at is not None:
        return decide_held(job, _DELETED)
    if job.version_deleted is None:
        return decide_held(job, _NO_VERSION)
    if job.version_deleted:
        return decide_held(job, _VERSION_DELETED)
    seen = input_revision(processor.reads, item.content_sha256, item.text_sha256)
    # What this attempt saw, not what the row says: a failover that loses a claim gives its token
    # out again, and the row may be a later attempt's.
    return decide_held(job, ended.outcome, input_changed=seen != ended.job.input_revision)


def release(deps: Deps, names: Mapping[UUID, str], held: Mapping[UUID, tuple[UUID, int]]) -> int:
    """Give jobs of this stopping process back, their attempts refunded.

    Args:
        deps: the collaborators.
        names: post-processors' names by id, for the log.
        held: job ids to (item id, lease token).

    Returns:
        How many went back to pending; the others had ended by themselves.
    """
    outcome = Outcome(kind="released", message="the worker stopped")

    def work(tx: Tx) -> list[jobs.Move]:
        items.lock_items(tx, [item_id for item_id, _ in held.values()])
        locked = jobs.lock_leased(tx, {id_: token for id_, (_, token) in held.items()})
        moves = [jobs.Move(job=job, transition=decide_held(job, outcome)) for job in locked]
        jobs.move(tx, moves)
        jobs.recompute_ready(tx, [job.item_id for job in locked])
        return moves

    moves = deps.db.transact(work)
    deps.emit(
        [
            facts.moved_event(names.get(m.job.post_processor_id, ""), m.job, m.transition)
            for m in moves
        ]
    )
    deps.hint({m.job.post_processor_id for m in moves if m.transition.to is Status.PENDING})
    return len(moves)


def decide_held(job: jobs.HeldJob, outcome: Outcome, *, input_changed: bool = False) -> Transition:
    """The rule for a job that is held under its lock."""
    attempt = Attempt(
        attempts=job.attempts,
        max_attempts=job.max_attempts,
        crash_count=job.crash_count,
        snoozes=job.snoozes,
        rerun_requested=job.rerun_requested,
        input_changed=input_changed,
        in_model=job.in_model,
        is_suspect=job.is_suspect,
    )
    return decide(attempt, outcome, jitter=random.random())  # noqa: S311  only spreads
