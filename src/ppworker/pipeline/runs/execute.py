"""One batch of one post-processor: claim, read, ask the model, finish. Read it top to bottom."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import UUID, uuid4

from ppworker import crash_points
from ppworker.domain.answer import parse
from ppworker.domain.apply import Target
from ppworker.domain.circuit import MODEL_FAULTS
from ppworker.domain.events import JobMoved
from ppworker.domain.job import NO_INPUT, Outcome, Status
from ppworker.domain.measurements import ModelAsked
from ppworker.domain.post_processor import TEXT_DOCUMENTS, PostProcessor
from ppworker.domain.text import clean_text, json_text
from ppworker.domain.turns import INTERACTIVE
from ppworker.errors import CommitUnknown, RunnerError
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import answers, circuits, finish, patience
from ppworker.pipeline.runs.label_cache import LabelCache
from ppworker.runners.base import RawAnswer, RunnerInput
from ppworker.runners.child import LOAD_TIMEOUT_S
from ppworker.runners.pool import NOT_ASKED, longest_s
from ppworker.store import claims, items, model_entries
from ppworker.store.claims import Claim, ClaimedJob, Lease, Place, Places
from ppworker.store.db import Tx

_CLAIM_LIMIT_S = 15.0
"""Seconds that a claim may take; then its connection is cut, and what it took is given back."""
_ANSWERED = Outcome(kind="answered")
_DOCX, _DOC = TEXT_DOCUMENTS
_NO_TEXT = {
    _DOCX: "the item has no text: the document is broken or locked, so none could be taken out of "
    "it when it was uploaded",
    _DOC: "the item has no text: files of the old format .doc are not read; save it as .docx and "
    "upload that",
}


class Predictor(Protocol):
    """A loaded model, or one that loads itself when asked."""

    @property
    def shares_process(self) -> bool:
        """Whether it runs in this very process, which dies with it."""

    def predict(
        self, inputs: Sequence[RunnerInput], *, timeout_s: float
    ) -> list[RawAnswer | RunnerError]:
        """One answer or error per input, in order; never raises for a model's fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Jobs claimed together, and whether more may be due behind them."""

    id: UUID
    jobs: list[ClaimedJob]
    is_full: bool
    suspects_wait: bool
    """Whether jobs are due that only `claim_suspects` takes."""
    of_suspects: bool
    claimed_at: float
    """When the claim was sent, by the monotonic clock of this process."""
    deadline_s: float
    """Seconds after which the database calls it hung."""

    @property
    def is_probe(self) -> bool:
        """Whether its one job tries a model that failed, before others are claimed."""
        return any(job.half_open for job in self.jobs)

    @property
    def places(self) -> dict[int, Place]:
        """Where the next claim may begin, by priority."""
        return {job.priority: (job.run_at, job.id) for job in self.jobs}


Take = Callable[[Tx, Lease, int], Claim]
"""Takes jobs up to a number in a transaction."""


def claim(
    deps: Deps,
    processor: PostProcessor,
    *,
    limit: int,
    first: int = INTERACTIVE,
    behind: Places | None = None,
    load_s: float = LOAD_TIMEOUT_S,
) -> Batch:
    """Lease up to ``limit`` due jobs that are no suspects, in a transaction of its own.

    With places to begin behind, an answer that is not full is completed from the beginning of the
    queue, because a job committed late may stand before them.

    Args:
        deps: the collaborators.
        processor: whose jobs.
        limit: most jobs.
        first: the priority that is served first.
        behind: where to begin in the queue of each priority.
        load_s: seconds that the model may take to load before it is asked.
    """

    def take(tx: Tx, lease: Lease, limit: int) -> Claim:
        def ask(limit: int, behind: Places | None) -> Claim:
            return claims.claim(
                tx,
                processor.id,
                lease,
                reads=processor.reads,
                limit=limit,
                first=first,
                behind=behind,
                is_probe=processor.half_open,
            )

        found = ask(limit, behind)
        if not behind or len(found.jobs) == limit:
            return found
        late = ask(limit - len(found.jobs), None)
        return Claim(jobs=[*found.jobs, *late.jobs], suspects_wait=late.suspects_wait)

    return _claim(deps, processor, take, limit=limit, load_s=load_s, of_suspects=False)


def claim_suspects(
    deps: Deps, processor: PostProcessor, *, limit: int, load_s: float = LOAD_TIMEOUT_S
) -> Batch:
    """Lease up to ``limit`` due suspects; to be run in a process of their model's own. Arguments as
    of ``claim``."""

    def take(tx: Tx, lease: Lease, limit: int) -> Claim:
        found = claims.claim_suspects(
            tx,
            processor.id,
            lease,
            reads=processor.reads,
            limit=limit,
            is_probe=processor.half_open,
        )
        return Claim(jobs=found, suspects_wait=True)

    return _claim(deps, processor, take, limit=limit, load_s=load_s, of_suspects=True)


def _claim(
    deps: Deps,
    processor: PostProcessor,
    take: Take,
    *,
    limit: int,
    load_s: float,
    of_suspects: bool,
) -> Batch:
    most_batches = processor.concurrency_cap
    if processor.half_open:
        limit = most_batches = 1
    in_model_s = longest_s(limit, load_s + processor.timeout_s)
    lease = Lease(
        worker_id=deps.worker_id,
        batch_id=uuid4(),
        lease_s=deps.settings.lease_s,
        deadline_s=in_model_s + deps.settings.lease_s,  # the rest is for what is written then
    )
    claimed_at = time.monotonic()
    claimed, suspects_wait = _take(deps, processor, take, lease, limit, most_batches)
    if claimed:
        crash_points.reach("after_claim_commit")
    deps.emit(
        [
            JobMoved(
                job_id=job.id,
                item_id=job.item_id,
                post_processor=processor.name,
                attempt=job.attempts,
                lease_token=job.lease_token,
                source=Status.PENDING,
                to=Status.PROCESSING,
                cause="claimed",
                seconds=job.waited_s,
            )
            for job in claimed
        ]
    )
    return Batch(
        id=lease.batch_id,
        jobs=claimed,
        is_full=len(claimed) == limit,
        suspects_wait=suspects_wait,
        of_suspects=of_suspects,
        claimed_at=claimed_at,
        deadline_s=lease.deadline_s,
    )


def _take(
    deps: Deps,
    processor: PostProcessor,
    take: Take,
    lease: Lease,
    limit: int,
    most_batches: int | None,
) -> Claim:
    """The transaction of a claim; none of its jobs is left behind when its COMMIT is in doubt."""
    taken: list[UUID] = []

    def work(tx: Tx) -> Claim:
        if most_batches is not None:
            claims.lock_cap(tx, processor.id)
            if claims.count_batches(tx, processor.id) >= most_batches:
                return Claim(jobs=[], suspects_wait=False)
        found = take(tx, lease, limit)
        taken[:] = [job.id for job in found.jobs]
        return found

    try:
        return deps.db.transact(work, limit_s=_CLAIM_LIMIT_S)
    except CommitUnknown:
        _give_back(deps, processor, lease.batch_id, taken)
        raise


def _give_back(
    deps: Deps, processor: PostProcessor, batch_id: UUID, taken: Collection[UUID]
) -> None:
    """Return what a claim took whose COMMIT nobody answered; nothing of it ran.

    That COMMIT may still be in flight, so it is waited for first.
    """

    def release(*, in_doubt: bool) -> int:  # noqa: ARG001  releasing twice changes nothing
        with deps.db.begin() as tx:
            claims.await_claim(tx, taken)
        with deps.db.look() as tx:
            held = claims.find_batch(tx, processor.id, batch_id)
        return finish.release(deps, {processor.id: processor.name}, held) if held else 0

    patience.until_it_answers(release)


def run(
    deps: Deps, labels: LabelCache, processor: PostProcessor, model: Predictor, batch: Batch
) -> finish.Report:
    """Ask the model about every job of a batch and write what follows; no transaction is open
    while the model runs."""
    texts = _read_texts(deps, processor, batch.jobs)
    inputs, ended = _inputs(deps, processor, batch.jobs, texts)
    said = _ask(deps, processor, model, batch, [each for _, each in inputs])
    for (job, given), answer in zip(inputs, said, strict=True):
        target = Target(
            multi_label=job.multi_label,
            text=given.text,
            width=job.width,
            height=job.height,
            page_count=job.page_count,
            duration_s=job.duration_s,
            max_text_bytes=deps.settings.max_text_bytes,
        )
        ended.append(_ended(processor, job, answer, target))
    if batch.is_probe:
        ended = [_uncharged(each) for each in ended]
    report = finish.finish(deps, labels, processor, ended)
    is_watched = any(job.half_open is not None for job in batch.jobs)
    # A probe decides about the pause whoever it is: nobody else asks the model then.
    apart = batch.of_suspects and not batch.is_probe
    circuits.note(deps, processor, ended, lost=report.lost, is_watched=is_watched, apart=apart)
    return report


def _ask(
    deps: Deps,
    processor: PostProcessor,
    model: Predictor,
    batch: Batch,
    inputs: Sequence[RunnerInput],
) -> list[RawAnswer | RunnerError]:
    """What the model says; it is not asked when the database was away until the deadline."""
    if inputs and model.shares_process:
        _enter(deps, batch)
    started = time.monotonic()
    if started > batch.claimed_at + batch.deadline_s:
        return [NOT_ASKED] * len(inputs)
    if inputs:
        crash_points.reach("before_model")
    said = model.predict(inputs, timeout_s=processor.timeout_s)
    if inputs:
        crash_points.reach("after_model")
        took_s = time.monotonic() - started
        deps.emit([ModelAsked(post_processor=processor.name, seconds=took_s)])
    return said


def _enter(deps: Deps, batch: Batch) -> None:
    """Note that the batch is about to be in the model, for whoever finds it there with its worker
    dead; the end of its jobs takes the note away."""

    def note(*, in_doubt: bool) -> None:  # noqa: ARG001  noting twice changes nothing
        with deps.db.look() as tx:
            model_entries.enter(tx, batch.id)

    patience.until_it_answers(note)


def _read_texts(
    deps: Deps, processor: PostProcessor, claimed: Sequence[ClaimedJob]
) -> dict[UUID, str]:
    """Texts of the items, for a runner that reads them."""
    wanted = [
        job.item_id
        for job in claimed
        if processor.reads == "text" or (processor.reads == "any" and job.content_sha256 is None)
    ]

    def read(*, in_doubt: bool) -> dict[UUID, str]:  # noqa: ARG001  reading is never in doubt
        with deps.db.look() as tx:
            return items.read_texts(tx, wanted)

    return patience.until_it_answers(read) if wanted else {}


def _inputs(
    deps: Deps,
    processor: PostProcessor,
    claimed: Sequence[ClaimedJob],
    texts: Mapping[UUID, str],
) -> tuple[list[tuple[ClaimedJob, RunnerInput]], list[answers.Ended]]:
    """What the model gets, and the jobs that end without it because their input is not there."""
    inputs: list[tuple[ClaimedJob, RunnerInput]] = []
    ended: list[answers.Ended] = []
    for job in claimed:
        path = None
        if processor.reads != "text" and job.content_sha256 is not None:
            path = deps.blobs.path(job.content_sha256)
        text = texts.get(job.item_id)
        missing = _missing(processor, job, text)
        if missing:
            ended.append(answers.Ended(job=job, outcome=missing))
            continue
        given = RunnerInput(
            key=str(job.id), name=job.item_name, media_type=job.media_type, path=path, text=text
        )
        inputs.append((job, given))
    return inputs, ended


def _missing(processor: PostProcessor, job: ClaimedJob, text: str | None) -> Outcome | None:
    if processor.reads == "text" and text is None:
        message = _NO_TEXT.get(
            job.media_type, "the item has no text; a post-processor before this one was to write it"
        )
        return Outcome(kind="error", code=NO_INPUT, message=message)
    if processor.reads == "file" and job.content_sha256 is None:
        return Outcome(kind="error", code=NO_INPUT, message="the item has no file")
    return None


def _ended(
    processor: PostProcessor, job: ClaimedJob, answer: RawAnswer | RunnerError, target: Target
) -> answers.Ended:
    if isinstance(answer, RunnerError):
        return answers.Ended(job=job, outcome=_failure(answer))
    raw, refused = json_text(answer.raw)
    try:
        inference = parse(processor.model_type, answer.raw)
    except RunnerError as error:
        return answers.Ended(job=job, outcome=_failure(error))
    return answers.Ended(
        job=job,
        outcome=_ANSWERED,
        answer=answers.Answer(
            raw=raw,
            refused=refused,
            model_version=clean_text(answer.model_version)[0],
            inference=inference,
            target=target,
        ),
    )


def _uncharged(probe: answers.Ended) -> answers.Ended:
    """A probe that the model failed costs no attempt: a model that is away for a day would
    otherwise use up the attempts of job after job."""
    outcome = probe.outcome
    if outcome.kind != "error" or outcome.code not in MODEL_FAULTS:
        return probe
    return replace(probe, outcome=replace(outcome, is_free=True))


def _failure(error: RunnerError) -> Outcome:
    return Outcome(
        kind="error",
        code=error.code,
        message=clean_text(str(error))[0][:2000],
        retryable=error.retryable,
        retry_after_s=error.retry_after_s,
    )
