"""Kept answers, read again and mapped with the settings of today, before any of it is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from ppworker.domain.answer import parse
from ppworker.domain.apply import Target
from ppworker.domain.inference import Inference
from ppworker.domain.post_processor import PostProcessor
from ppworker.domain.reapply import Kept, Skip, input_holds
from ppworker.domain.text import clean_text
from ppworker.errors import BadResponse, NotFound
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs.answers import Drafted, Inferred, Names, map_inferences
from ppworker.store import post_processors, results
from ppworker.store.blobs import text_sha256
from ppworker.store.db import Tx
from ppworker.store.ids import new_id
from ppworker.store.results import Scope

_MOST_BYTES = 16 * 1024 * 1024
"""Of answers and texts in one chunk; in memory they are several times as large."""
_MARKS_TEXT = frozenset({"ner", "llm"})
"""Tasks whose answers may mark places in the text that the model read."""
_LOW_BITS = 64
"""Of an item's id that a cursor leaves out: it is a number of 64 bits."""

Pair = tuple[UUID, UUID]
"""Item and version."""


@dataclass(slots=True, kw_only=True)
class Answer:
    """A kept answer, and what becomes of it unless something changes before that is written."""

    kept: results.Kept
    skip: Skip | None = None
    """Why it is left alone."""
    inferred: Inferred | None = None
    drafted: Drafted | None = None
    text: str | None = None
    """To be written on the item."""
    keeps_text: bool = False
    """Whether it has a text that is not written, because somebody changed the item's since."""

    @property
    def pair(self) -> Pair:
        """Item and version that it is for."""
        return self.kept.item_id, self.kept.version_id


@dataclass(slots=True, kw_only=True)
class Prepared:
    """A chunk of answers, mapped but not compared with what stands."""

    processor: PostProcessor
    multi_label: bool
    walked: list[UUID]
    """Items in the order of their ids, those without an answer among them."""
    is_last: bool
    answers: list[Answer]
    """In the order of their items."""


def prepare(
    deps: Deps, names: Names, scope: Scope, user_id: UUID, *, cursor: int, limit: int
) -> Prepared:
    """Read and map the answers of about ``limit`` items behind the cursor; creates their labels.

    Raises:
        NotFound: the post-processor was deleted.
    """
    with deps.db.look() as tx:
        processor = post_processors.find_post_processor(tx, scope.post_processor_id)
        today = post_processors.read_today(tx, scope.post_processor_id)
        if processor is None or today is None:
            raise NotFound("the post-processor was deleted", field="processor")
        walked, is_last = _next_items(tx, scope, cursor=cursor, limit=limit)
        kept = results.read_kept(
            tx,
            scope,
            walked,
            texts_for=processor.reads if processor.model_type in _MARKS_TEXT else None,
        )
    multi_label = today[1]
    most = deps.settings.max_text_bytes
    answers = [
        _read(each, processor, user_id, multi_label=multi_label, max_text_bytes=most)
        for each in kept
    ]
    inferred = [each.inferred for each in answers if each.inferred]
    drafted = map_inferences(names, processor, inferred) if inferred else {}
    for each in answers:
        if each.inferred:
            _judge_text(each, each.inferred.inference, drafted[each.inferred.key])
    return Prepared(
        processor=processor,
        multi_label=multi_label,
        walked=walked,
        is_last=is_last,
        answers=answers,
    )


def cursor_of(item_id: UUID) -> int:
    """Place of an item: the upper half of its id, which is time and a part of a millisecond."""
    return item_id.int >> _LOW_BITS


def label_ids(answers: Sequence[Answer]) -> set[UUID]:
    """Labels that the drafts of the answers use."""
    return {label_id for each in answers if each.drafted for _, label_id in each.drafted.drafts}


def _next_items(tx: Tx, scope: Scope, *, cursor: int, limit: int) -> tuple[list[UUID], bool]:
    """Items behind the cursor, and whether they are the last.

    Items of one cursor are never parted, so the next chunk begins behind all of them.
    """
    if scope.item_id:
        return [scope.item_id], True
    after = UUID(int=(cursor << _LOW_BITS) | ((1 << _LOW_BITS) - 1))
    while True:
        found = results.walk(tx, scope, after=after, limit=limit + 1)
        fitting = _fitting(found, limit)
        if fitting == len(found):
            return [each.item_id for each in found], True
        border = cursor_of(found[fitting].item_id)
        before = [each.item_id for each in found if cursor_of(each.item_id) < border]
        if before:
            return before, False
        together = [each.item_id for each in found if cursor_of(each.item_id) == border]
        if len(together) < len(found) or len(found) <= limit:
            return together, len(together) == len(found)
        limit *= 2


def _fitting(found: Sequence[results.Walked], limit: int) -> int:
    """How many of the items may be in one chunk: at least one of them, if there is one."""
    size = 0
    for number, each in enumerate(found[:limit]):
        size += each.size_bytes
        if number and size > _MOST_BYTES:
            return number
    return min(limit, len(found))


def _read(
    kept: results.Kept,
    processor: PostProcessor,
    user_id: UUID,
    *,
    multi_label: bool,
    max_text_bytes: int,
) -> Answer:
    """Read a kept answer, if it may be applied again."""
    if kept.is_deleted:
        return Answer(kept=kept, skip=Skip.ITEM_DELETED)
    if kept.refused:
        return Answer(kept=kept, skip=Skip.REFUSED_VALUES)
    try:
        inference = parse(processor.model_type, kept.raw)
    except BadResponse:
        return Answer(kept=kept, skip=Skip.UNREADABLE)
    if not input_holds(_facts(kept, inference), processor.reads):
        return Answer(kept=kept, skip=Skip.INPUT_CHANGED)
    target = Target(
        multi_label=multi_label,
        text=kept.text,
        width=kept.width,
        height=kept.height,
        page_count=kept.page_count,
        duration_s=kept.duration_s,
        max_text_bytes=max_text_bytes,
    )
    inferred = Inferred(new_id(), kept.version_id, user_id, inference, target)
    return Answer(kept=kept, inferred=inferred)


def _facts(kept: results.Kept, inference: Inference) -> Kept:
    text = inference.text
    return Kept(
        input_revision=kept.input_revision,
        text_after=kept.text_after,
        content_sha256=kept.content_sha256,
        text_sha256=kept.text_sha256,
        own_text_sha256=None if text is None else text_sha256(clean_text(text)[0]),
    )


def _judge_text(answer: Answer, inference: Inference, drafted: Drafted) -> None:
    """Write a text again unless somebody wrote another one over it since."""
    answer.drafted = drafted
    if drafted.text is None or text_sha256(drafted.text) == answer.kept.text_sha256:
        return
    if _facts(answer.kept, inference).is_text_untouched:
        answer.text = drafted.text
    elif any(prediction.kind == "span" for prediction in inference.predictions):
        answer.skip = Skip.TEXT_CHANGED
    else:
        answer.keeps_text = True
