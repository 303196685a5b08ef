"""Applies kept answers again with the settings of today: no model is asked.

One step of an operation: it maps a chunk of answers outside any transaction, creates the labels
they need, and then, under the items' locks, writes those whose item and answer are still what was
mapped. A chunk that meets a change ends before it; the next one begins with what is there then.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

from ppworker.domain.drop import add_counts
from ppworker.domain.events import Event
from ppworker.domain.post_processor import PostProcessor
from ppworker.domain.reapply import Skip
from ppworker.errors import NotFound
from ppworker.pipeline.control import operate
from ppworker.pipeline.control.kept_answers import (
    Answer,
    Pair,
    Prepared,
    cursor_of,
    label_ids,
    prepare,
)
from ppworker.pipeline.control.operations import Chunk, Write
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import outputs
from ppworker.pipeline.runs.answers import CreatedNames, Drafted, Inferred
from ppworker.pipeline.runs.label_cache import LabelCache
from ppworker.pipeline.uploads import ingest
from ppworker.store import items, job_operations, jobs, operations, post_processors, results
from ppworker.store.blobs import text_sha256
from ppworker.store.db import Tx
from ppworker.store.ids import new_id
from ppworker.store.operations import Operation
from ppworker.store.results import Scope, State

KIND = "reapply"


@dataclass(slots=True, kw_only=True)
class Decided:
    """What a chunk changes."""

    output: outputs.Plan = field(default_factory=outputs.Plan)
    counts: Counter[str] = field(default_factory=Counter)
    """How many of what, by word."""
    dropped: dict[UUID, Mapping[str, int]] = field(default_factory=dict)
    """Drops of every step by reason, for each job."""
    texts: dict[Pair, str] = field(default_factory=dict)
    """Hashes of the texts that are written."""


def begin(
    deps: Deps, processor: PostProcessor, scope: Scope, user_id: UUID, *, successors: bool = False
) -> UUID:
    """Create the operation that applies the kept answers of a scope again; returns its id.

    Args:
        deps: the collaborators.
        processor: whose answers.
        scope: which of them.
        user_id: who asks.
        successors: whether later post-processors that read a text run again where this one
            changes it.
    """
    id_ = new_id()

    def work(tx: Tx) -> None:
        operations.insert_operation(
            tx,
            id_,
            user_id,
            kind=KIND,
            arguments={
                "post_processor_id": str(processor.id),
                "split_id": str(scope.split_id) if scope.split_id else None,
                "item_id": str(scope.item_id) if scope.item_id else None,
                "successors": successors,
            },
            dataset_id=processor.dataset_id,
            total=1 if scope.item_id else results.count_walked(tx, scope),
        )

    deps.db.transact(work)
    return id_


def step(deps: Deps, operation: Operation) -> Write:
    """Prepare the next chunk of a reapply, as `ppworker.pipeline.control.operations.Step` asks.

    Raises:
        NotFound: the post-processor was deleted.
    """
    prepared = prepare(
        deps,
        CreatedNames(deps, LabelCache(deps.db)),
        _scope(operation),
        operation.user_id,
        cursor=operation.cursor,
        limit=operation.chunk,
    )
    return partial(_write, deps, operation, prepared)


def _scope(operation: Operation) -> Scope:
    if operation.dataset_id is None:
        raise NotFound("the dataset was deleted", field="dataset")
    given = operation.arguments
    return Scope(
        post_processor_id=UUID(given["post_processor_id"]),
        dataset_id=operation.dataset_id,
        split_id=UUID(given["split_id"]) if given["split_id"] else None,
        item_id=UUID(given["item_id"]) if given["item_id"] else None,
    )


def _write(deps: Deps, operation: Operation, prepared: Prepared, tx: Tx) -> Chunk:
    """Write a chunk as far as it is still what was prepared."""
    processor = prepared.processor
    locked = items.lock_items(tx, [each.kept.item_id for each in prepared.answers])
    if post_processors.read_today(tx, processor.id) != (processor.revision, prepared.multi_label):
        return Chunk(cursor=operation.cursor, done=0, counts={}, is_last=False)
    states = results.read_states(tx, processor.id, [each.pair for each in prepared.answers])
    changed = [each for each in prepared.answers if _is_changed(each, states, locked)]
    end = cursor_of(changed[0].kept.item_id) if changed else None
    walked = [id_ for id_ in prepared.walked if end is None or cursor_of(id_) < end]
    answers = prepared.answers[: _count_of(prepared.answers, walked)]
    todo = [each for each in answers if not each.skip and not states[each.pair].is_live]
    completed = job_operations.lock_completed(tx, [each.kept.job_id for each in todo])
    read = outputs.read(tx, [each.pair for each in todo], label_ids(todo))
    decided = decide(prepared, answers, states, read)
    _write_decided(tx, processor, decided, completed)
    woken, events = _rerun_readers(tx, processor, decided, operation)

    def tell() -> None:
        deps.emit([*events, outputs.written(processor.name, decided.output)])
        deps.hint(woken)

    return Chunk(
        cursor=cursor_of(walked[-1]) if walked else operation.cursor,
        done=len(walked),
        counts=dict(decided.counts + Counter(jobs_planned=len(events))),
        is_last=prepared.is_last and not changed,
        after=tell,
    )


def _count_of(answers: Sequence[Answer], walked: Sequence[UUID]) -> int:
    """How many of the answers are of these items."""
    there = set(walked)
    return sum(1 for each in answers if each.kept.item_id in there)


def _is_changed(
    answer: Answer,
    states: Mapping[Pair, State],
    locked: Mapping[UUID, items.LockedItem],
) -> bool:
    """Whether the answer must be looked at again: it, or its item, is not what was prepared."""
    kept, state, item = answer.kept, states[answer.pair], locked.get(answer.kept.item_id)
    if state.is_live:
        return False
    if item is None or state.job_id != kept.job_id:
        return True
    seen = (kept.content_sha256, kept.text_sha256, kept.is_deleted)
    return seen != (item.content_sha256, item.text_sha256, item.deleted_at is not None)


def decide(
    prepared: Prepared,
    answers: Sequence[Answer],
    states: Mapping[Pair, State],
    read: outputs.Read,
) -> Decided:
    """What the answers change, and how many of what."""
    decided = Decided()
    for each in answers:
        decided.counts["answers"] += 1
        skip = Skip.LIVE_JOB if states[each.pair].is_live else each.skip
        if skip:
            decided.counts[f"skipped_{skip}"] += 1
        elif each.inferred and each.drafted:
            _decide_one(decided, prepared, each, (each.inferred, each.drafted), read)
    decided.counts = +decided.counts
    return decided


def _decide_one(
    decided: Decided,
    prepared: Prepared,
    answer: Answer,
    mapped: tuple[Inferred, Drafted],
    read: outputs.Read,
) -> None:
    kept, (inferred, drafted) = answer.kept, mapped
    origin = outputs.Origin(
        kept.job_id, kept.item_id, kept.version_id, inferred.user_id, kept.model_version
    )
    changes, drops = outputs.add(
        decided.output, prepared.processor, origin, drafted, read, multi_label=prepared.multi_label
    )
    dropped = decided.dropped[kept.job_id] = add_counts(*drops)
    if answer.text is not None:
        decided.output.texts[kept.item_id] = answer.text
        decided.texts[answer.pair] = text_sha256(answer.text)
    counts = {
        "annotations_added": len(changes.insert),
        "annotations_updated": len(changes.update),
        "annotations_removed": len(changes.delete),
        "texts_written": int(answer.text is not None),
    }
    decided.counts.update(
        {
            **counts,
            "answers_changed": int(any(counts.values())),
            "annotations_unchanged": changes.unchanged,
            "texts_kept": int(answer.keeps_text),
            **{f"dropped_{reason}": n for reason, n in dropped.items()},
        }
    )


def _write_decided(
    tx: Tx,
    processor: PostProcessor,
    decided: Decided,
    completed: Mapping[UUID, Mapping[str, int]],
) -> None:
    """Write what differs, and nothing where nothing does."""
    output = decided.output
    if output.insert or output.update or output.delete or output.texts:
        outputs.write(tx, output)
    if decided.texts:
        results.mark_texts(tx, processor.id, decided.texts)
    dropped = {
        job_id: counts
        for job_id, counts in decided.dropped.items()
        if job_id in completed and dict(completed[job_id]) != counts
    }
    if dropped:
        job_operations.write_dropped(tx, dropped)


def _rerun_readers(
    tx: Tx, processor: PostProcessor, decided: Decided, operation: Operation
) -> tuple[set[UUID], list[Event]]:
    """Run later post-processors again where a text changed, if that was asked for."""
    if not decided.texts or not operation.arguments["successors"]:
        return set(), []
    pairs = list(decided.texts)
    planned, retried = job_operations.rerun_readers(tx, pairs, order=processor.order)
    names = jobs.names_of(tx, {each.post_processor_id for each in planned})
    woken = jobs.recompute_ready(tx, [item_id for item_id, _ in pairs])
    return woken, [
        *ingest.planned_events(planned, names, origin="rerun"),
        *operate.retried_events(retried),
    ]
