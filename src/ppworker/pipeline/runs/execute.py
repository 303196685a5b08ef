"""One batch of one post-processor: claim, read, ask the model, finish. Read it top to bottom."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID, uuid4

from ppworker import crash_points
from ppworker.domain.answer import parse
from ppworker.domain.apply import Target
from ppworker.domain.events import JobMoved
from ppworker.domain.job import NO_INPUT, Outcome, Status
from ppworker.domain.measurements import ModelAsked
from ppworker.domain.post_processor import TEXT_DOCUMENTS, PostProcessor
from ppworker.domain.text import clean_text, json_text
from ppworker.errors import CommitUnknown, RunnerError
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import answers, finish, patience
from ppworker.pipeline.runs.label_cache import LabelCache
from ppworker.runners.base import RawAnswer, RunnerInput
from ppworker.runners.child import LOAD_TIMEOUT_S
from ppworker.store import items, jobs
from ppworker.store.db import Tx
from ppworker.store.jobs import Bound

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

    def predict(
        self, inputs: Sequence[RunnerInput], *, timeout_s: float
    ) -> list[RawAnswer | RunnerError]:
        """One answer or error per input, in order; never raises for a model's fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Jobs claimed together, and whether more may be due behind them."""

    id: UUID
    jobs: list[jobs.ClaimedJob]
    is_full: bool

    @property
    def bound(self) -> Bound | None:
        """Where the next claim may begin."""
        last = self.jobs[-1] if self.jobs else None
        return (last.priority, last.run_at, last.id) if last else None


def claim(deps: Deps, processor: PostProcessor, *, limit: int, behind: Bound | None) -> Batch:
    """Lease up to ``limit`` due jobs in a transaction of its own.

    With a bound, an answer that is not full is completed from the beginning of the queue, because
    a job committed late may stand before the bound.
    """
    batch_id = uuid4()
    halvings = math.ceil(math.log2(limit)) if limit > 1 else 0
    # The first batch waits for its model to load, which has a limit of its own.
    deadline_s = LOAD_TIMEOUT_S + processor.timeout_s * (1 + halvings) + deps.settings.lease_s

    def ask(tx: Tx, n: int, behind: Bound | None) -> list[jobs.ClaimedJob]:
        return jobs.claim(
            tx,
            processor.id,
            reads=processor.reads,
            worker_id=deps.worker_id,
            batch_id=batch_id,
            limit=n,
            lease_s=deps.settings.lease_s,
            deadline_s=deadline_s,
            behind=behind,
        )

    def work(tx: Tx) -> list[jobs.ClaimedJob]:
        if processor.concurrency_cap is not None:
            jobs.lock_cap(tx, processor.id)
            if jobs.count_batches(tx, processor.id) >= processor.concurrency_cap:
                return []
        claimed = ask(tx, limit, behind)
        if behind is not None and len(claimed) < limit:
            claimed += ask(tx, limit - len(claimed), None)
        return claimed

    try:
        claimed = deps.db.transact(work)
    except CommitUnknown:
        _give_back(deps, processor, batch_id)
        raise
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
    return Batch(id=batch_id, jobs=claimed, is_full=len(claimed) == limit)


def _give_back(deps: Deps, processor: PostProcessor, batch_id: UUID) -> None:
    """Return what a claim took whose COMMIT nobody answered; nothing of it ran."""

    def release(*, in_doubt: bool) -> int:  # noqa: ARG001  releasing twice changes nothing
        with deps.db.look() as tx:
            held = jobs.find_batch(tx, processor.id, batch_id)
        return finish.release(deps, {processor.id: processor.name}, held) if held else 0

    patience.until_it_answers(release)


def run(
    deps: Deps, labels: LabelCache, processor: PostProcessor, model: Predictor, batch: Batch
) -> finish.Report:
    """Ask the model about every job of a batch and write what follows; no transaction is open
    while the model runs."""
    texts = _read_texts(deps, processor, batch.jobs)
    inputs, ended = _inputs(deps, processor, batch.jobs, texts)
    if inputs:
        crash_points.reach("before_model")
    started = time.monotonic()
    said = model.predict([each for _, each in inputs], timeout_s=processor.timeout_s)
    if inputs:
        crash_points.reach("after_model")
        took_s = time.monotonic() - started
        deps.emit([ModelAsked(post_processor=processor.name, seconds=took_s)])
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
    return finish.finish(deps, labels, processor, ended)


def _read_texts(
    deps: Deps, processor: PostProcessor, claimed: Sequence[jobs.ClaimedJob]
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
    claimed: Sequence[jobs.ClaimedJob],
    texts: Mapping[UUID, str],
) -> tuple[list[tuple[jobs.ClaimedJob, RunnerInput]], list[answers.Ended]]:
    """What the model gets, and the jobs that end without it because their input is not there."""
    inputs: list[tuple[jobs.ClaimedJob, RunnerInput]] = []
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


def _missing(processor: PostProcessor, job: jobs.ClaimedJob, text: str | None) -> Outcome | None:
    if processor.reads == "text" and text is None:
        message = _NO_TEXT.get(
            job.media_type, "the item has no text; a post-processor before this one was to write it"
        )
        return Outcome(kind="error", code=NO_INPUT, message=message)
    if processor.reads == "file" and job.content_sha256 is None:
        return Outcome(kind="error", code=NO_INPUT, message="the item has no file")
    return None


def _ended(
    processor: PostProcessor, job: jobs.ClaimedJob, answer: RawAnswer | RunnerError, target: Target
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


def _failure(error: RunnerError) -> Outcome:
    return Outcome(
        kind="error",
        code=error.code,
        message=clean_text(str(error))[0][:2000],
        retryable=error.retryable,
        retry_after_s=error.retry_after_s,
    )
