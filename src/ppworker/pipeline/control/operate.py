"""What people do to jobs and post-processors: retry, cancel, pause, resume, backfill."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from ppworker.domain.events import Event, JobMoved
from ppworker.domain.job import Status
from ppworker.domain.post_processor import ItemFacts, PostProcessor, plan_jobs
from ppworker.errors import Conflict, NotFound
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import facts
from ppworker.pipeline.uploads import ingest
from ppworker.store import (
    idempotency,
    items,
    job_operations,
    job_restarts,
    jobs,
    post_processors,
)
from ppworker.store.datasets import Split
from ppworker.store.db import Tx
from ppworker.store.ids import new_id

CHUNK = 500
"""Jobs or items that one transaction of a bulk operation touches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operated:
    """What an operation did."""

    changed: int
    skipped: int = 0
    """Left alone: not in a state that allows it, or a live job has taken the place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """An idempotency key, and the hash of what was asked for with it."""

    key: str
    digest: str


def retry(deps: Deps, user_id: UUID, job_id: UUID, *, successors: bool = False) -> None:
    """Start a failed job again on the same row, with a fresh budget.

    Of many callers at once exactly one wins. Later jobs of the item that failed only because of
    this one are retried with it.

    Args:
        deps: the collaborators.
        user_id: whose job it must be.
        job_id: the job.
        successors: also run later post-processors of the item again that completed.

    Raises:
        NotFound: there is no such job, or it is somebody else's.
        Conflict: the job has not failed, or a newer job of the same post-processor and item lives.
    """
    with deps.db.begin() as tx:
        job = job_operations.find_job(tx, user_id, job_id)
    if job is None:
        raise _no_job(job_id)
    done = _retry(deps, [(job_id, job.item_id)], successors=successors)
    if done.changed:
        return
    with deps.db.begin() as tx:
        job = job_operations.find_job(tx, user_id, job_id)
    if job is None:  # it was removed meanwhile
        raise _no_job(job_id)
    if job.status == Status.FAILED:
        raise Conflict(
            f"job {job_id} cannot be retried: its post-processor was deleted, or a newer job "
            "of it and of the item lives",
            field="job",
        )
    raise Conflict(f"job {job_id} is {job.status}; only failed jobs can be retried", field="job")


def retry_once(
    deps: Deps, user_id: UUID, job_id: UUID, once: Once, *, successors: bool = False
) -> Operated | None:
    """Retry a job for a message that may come again: key and transition commit together.

    A job that has not failed, or whose place a newer one has taken, is skipped, and the key is
    used up all the same: a late copy of the message must not start what failed after it was sent.

    Returns:
        What it did, None when the key was known.

    Raises:
        NotFound: there is no such job, or it is somebody else's.
        Conflict: the key was used for something else.
    """
    with deps.db.begin() as tx:
        job = job_operations.find_job(tx, user_id, job_id)
    if job is None:
        raise _no_job(job_id)
    is_known = False

    def claim(tx: Tx) -> bool:
        nonlocal is_known
        known = idempotency.claim_key(tx, user_id, once.key, once.digest, [job_id])
        if known is not None and known.request_sha256 != once.digest:
            raise Conflict(
                f"key '{once.key}' was used for something else; choose a new key", field="key"
            )
        is_known = known is not None
        return not is_known

    done = _retry(deps, [(job_id, job.item_id)], successors=successors, claim=claim)
    return None if is_known else done


def retry_failed(
    deps: Deps,
    user_id: UUID,
    *,
    dataset_id: UUID | None = None,
    post_processor_id: UUID | None = None,
    reason: str | None = None,
    successors: bool = False,
) -> Operated:
    """Retry every failed job that matches, the newest per item and post-processor."""
    changed = skipped = 0
    after: UUID | None = None
    while True:
        with deps.db.begin() as tx:
            found = job_restarts.find_failed(
                tx,
                user_id,
                dataset_id=dataset_id,
                post_processor_id=post_processor_id,
                reason=reason,
                after=after,
                limit=CHUNK,
            )
        if not found:
            return Operated(changed=changed, skipped=skipped)
        done = _retry(deps, found, successors=successors)
        changed += done.changed
        skipped += done.skipped
        after = found[-1][0]


def _always(tx: Tx) -> bool:  # noqa: ARG001  a claim's shape
    return True


def _retry(
    deps: Deps,
    wanted: Sequence[tuple[UUID, UUID]],
    *,
    successors: bool,
    claim: Callable[[Tx], bool] = _always,
) -> Operated:
    def work(tx: Tx) -> Restarted | None:
        return restart(tx, wanted, successors=successors) if claim(tx) else None

    done = deps.db.transact(work)
    if done is None:
        return Operated(changed=0, skipped=len(wanted))
    deps.emit(done.events)
    deps.hint(done.woken)
    return done.operated


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """What a restart of failed jobs did, to be told after its COMMIT."""

    operated: Operated
    woken: Collection[UUID]
    """Post-processors that got a job to run."""
    events: Sequence[Event]


def restart(
    tx: Tx, wanted: Sequence[tuple[UUID, UUID]], *, successors: bool, gap_s: float = 0.0
) -> Restarted:
    """Make failed jobs, given as (job, item), pending again, and what depends on them.

    Args:
        tx: a transaction that holds no lock of an item or job.
        wanted: the jobs; of several of one item and post-processor the newest is taken, and none
            where one lives.
        successors: also run later post-processors of the items again that answered.
        gap_s: seconds from one to the next; 0 has them due at once.
    """
    item_ids = [item_id for _, item_id in wanted]
    items.lock_items(tx, item_ids)
    retried = job_operations.retry(tx, [id_ for id_, _ in wanted], gap_s=gap_s)
    ids = [job.id for job in retried]
    revived = job_operations.revive_successors(tx, ids)
    planned = job_operations.insert_successors(tx, ids) if successors else []
    names = jobs.names_of(tx, {job.post_processor_id for job in planned}) if planned else {}
    woken = jobs.recompute_ready(tx, item_ids)
    # Last: a claim takes no item lock, and one may have come before the line above.
    job_operations.rerun_processing_successors(tx, ids)
    return Restarted(
        operated=Operated(changed=len(retried), skipped=len(wanted) - len(retried)),
        woken=woken,
        events=[
            *retried_events([*retried, *revived]),
            *ingest.planned_events(planned, names, origin="rerun"),
        ],
    )


def retried_events(retried: Iterable[job_operations.Retried]) -> list[Event]:
    """The facts that failed jobs are pending again."""
    return [
        JobMoved(
            job_id=job.id,
            item_id=job.item_id,
            post_processor=job.post_processor,
            attempt=0,
            lease_token=job.lease_token,
            source=Status.FAILED,
            to=Status.PENDING,
            cause="retried",
        )
        for job in retried
    ]


def cancel(deps: Deps, user_id: UUID, job_id: UUID) -> None:
    """End a pending or processing job as failed, reason ``cancelled``.

    A model that is running goes on to its end, but its answer is refused. Later jobs of the item
    fail with it where its post-processor says stop.

    Raises:
        NotFound: there is no such job, or it is somebody else's.
        Conflict: the job is over.
    """
    with deps.db.begin() as tx:
        job = job_operations.find_job(tx, user_id, job_id)
    if job is None:
        raise _no_job(job_id)

    def work(tx: Tx) -> tuple[list[job_operations.Cancelled], list[jobs.Stopped], set[UUID]]:
        items.lock_items(tx, [job.item_id])
        done = job_operations.cancel(tx, [job_id])
        stopped = jobs.stop_successors(tx, [each.id for each in done])
        return done, stopped, jobs.recompute_ready(tx, [job.item_id])

    cancelled, stopped, woken = deps.db.transact(work)
    if not cancelled:
        with deps.db.begin() as tx:
            if job_operations.find_job(tx, user_id, job_id) is None:  # removed meanwhile
                raise _no_job(job_id)
        raise Conflict(f"job {job_id} is over; only live jobs can be cancelled", field="job")
    deps.emit([*(cancelled_event(job) for job in cancelled), *facts.stopped_events(stopped)])
    deps.hint(woken)


def cancelled_event(job: job_operations.Cancelled) -> Event:
    """The fact that a live job was ended."""
    return JobMoved(
        job_id=job.id,
        item_id=job.item_id,
        post_processor=job.post_processor,
        attempt=job.attempts,
        lease_token=job.lease_token,
        source=Status(job.was),
        to=Status.FAILED,
        cause="cancelled",
        reason="cancelled",
        seconds=job.ran_s,
        age_s=job.age_s,
    )


def set_paused(deps: Deps, processor: PostProcessor, *, paused: bool) -> None:
    """Pause a post-processor, or resume it; running batches end as they would."""
    with deps.db.begin() as tx:
        post_processors.set_paused(tx, processor.id, paused=paused)
    if not paused:
        deps.hint([processor.id])


def backfill(deps: Deps, processor: PostProcessor, splits: Sequence[Split]) -> Iterator[Operated]:
    """Plan jobs of one post-processor for items that are already there; yields after each chunk.

    Items for which it has a job, whatever its status, are left alone, so a repetition after a
    crash goes on where it stopped.
    """
    for split in splits:
        after: UUID | None = None
        while True:
            chunk = _backfill_chunk(deps, processor, split, after)
            if chunk is None:
                break
            after, done = chunk
            yield done


def _backfill_chunk(
    deps: Deps, processor: PostProcessor, split: Split, after: UUID | None
) -> tuple[UUID, Operated] | None:
    def work(tx: Tx) -> tuple[list[UUID], list[jobs.NewJob]]:
        found = items.find_without_job(
            tx, split.id, split.version_id, processor.id, after=after, limit=CHUNK
        )
        if not found:
            return [], []
        ids = [row.id for row in found]
        items.lock_items(tx, ids)
        # Another backfill may have come first.
        unplanned = items.without_job(tx, ids, split.version_id, processor.id)
        others = [
            p
            for p in post_processors.list_post_processors(tx, split.dataset_id)
            if p.id != processor.id
        ]
        planned = [
            jobs.NewJob(
                id=new_id(),
                post_processor_id=processor.id,
                item_id=row.id,
                version_id=split.version_id,
                user_id=split.user_id,
                order=processor.order,
                ready=False,
                max_attempts=processor.max_attempts,
                priority=1,
            )
            for row in found
            if row.id in unplanned
            and processor in plan_jobs(_facts(row, split), [*others, processor])
        ]
        jobs.insert_jobs(tx, planned)
        jobs.recompute_ready(tx, [job.item_id for job in planned])
        return ids, planned

    seen, planned = deps.db.transact(work)
    if not seen:
        return None
    ingest.announce_planned(deps, planned, [processor], origin="backfill")
    if planned:
        deps.hint([processor.id])
    return seen[-1], Operated(changed=len(planned), skipped=len(seen) - len(planned))


def _facts(row: items.Unprocessed, split: Split) -> ItemFacts:
    return ItemFacts(
        extension=row.extension,
        media_type=row.media_type,
        has_file=row.has_file,
        has_text=row.has_text,
        split_names=frozenset({split.name}),
    )


def _no_job(job_id: UUID) -> NotFound:
    return NotFound(
        f"no job {job_id}; `ppworker jobs list DATASET` shows those there are", field="job"
    )
