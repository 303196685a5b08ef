"""Applies accepted inferences: items, memberships, annotations, stats and jobs, a chunk at a time.

A fixed number of statements per chunk, whatever its size. The order inside the transaction is the
protocol: the operation (by whoever runs the chunk), the dataset, items, labels; then reads that
decide; then writes. Nothing that stands is changed or deleted.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from ppworker.domain import given as rule
from ppworker.domain.coordinates import About, family, nuls_in
from ppworker.domain.events import LabelsCreated
from ppworker.domain.given import Given
from ppworker.domain.labels import normalise_label
from ppworker.domain.text import clean_text
from ppworker.errors import Invalid
from ppworker.pipeline.control.operations import Chunk, Write
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.inferences import inference_lines
from ppworker.pipeline.inferences.additions import Additions, LabelIds, Touched
from ppworker.pipeline.inferences.inference_lines import Chunk as Lines
from ppworker.pipeline.inferences.inference_lines import Line
from ppworker.pipeline.uploads import ingest
from ppworker.pipeline.uploads.names import clean_name, extension_of
from ppworker.store import (
    annotations,
    datasets,
    inferences,
    items,
    labels,
    model_inferences,
    post_processors,
)
from ppworker.store.datasets import Split
from ppworker.store.db import Tx
from ppworker.store.ids import new_id
from ppworker.store.inferences import Known, LinkedItem
from ppworker.store.operations import Operation

MOST_LABELS = 2_000
"""Labels of a version beyond which inferences create no more: text in the wrong key would do so."""
_CHUNK_BYTES = 4 * 1024 * 1024
_CHUNK_PREDICTIONS = 20_000
_TEXT_BYTES = 16 * 1024 * 1024
"""Bytes of stored texts that a chunk reads at most, to place spans in them."""
_FILES_S = 2.0
"""Seconds that a chunk spends on looking at files; the others come in the next chunk."""

UNKNOWN_ITEM, DELETED_ITEM, OTHER_ITEM = "unknown_item", "deleted_item", "other_item"
UNKNOWN_BLOB, TEXT_TOO_LONG = "unknown_blob", "text_too_long"
"""Why an inference is left out; counted as ``skipped_`` and the word."""

FileItems = Mapping[tuple[str, str], items.NewItem | str]
"""By an inference's id and its file's hash: the item that it becomes, or why it becomes none."""


def step(deps: Deps, operation: Operation) -> Write:
    """Prepare the next chunk of an operation of kind ``apply_inferences``.

    Raises:
        NotFound: the split is gone.
    """
    keep = bool(operation.arguments["keep_annotations"])
    split_id = str(operation.arguments["split_id"])
    kept_by = datasets.as_id(str(operation.arguments.get("kept_by", "")))
    with deps.db.look() as tx:
        split = datasets.get_split(tx, operation.user_id, split_id)
    chunk = inference_lines.read_chunk(
        deps.blobs.path(str(operation.arguments["blob"])),
        operation.cursor,
        most_lines=operation.chunk,
        most_bytes=_CHUNK_BYTES,
        most_predictions=_CHUNK_PREDICTIONS,
    )
    chunk = _within_memory(deps, split, chunk)
    chunk, files = _with_files(deps, split, chunk)
    label_ids = _ensure_labels(deps, split, chunk.lines) if keep else None

    def write(tx: Tx) -> Chunk:
        # Read again: the split may have gone since.
        found = datasets.get_split(tx, operation.user_id, split_id)
        additions = _gather(tx, found, chunk.lines, files, label_ids)
        processors = post_processors.list_post_processors(tx, found.dataset_id)
        additions.plan(processors)
        additions.write(tx)
        if kept_by is not None:
            became = {
                id_: item for key, item in additions.became.items() if (id_ := datasets.as_id(key))
            }
            model_inferences.mark_added(tx, kept_by, became)

        def tell() -> None:
            deps.emit([additions.written()])
            ingest.announce_planned(deps, additions.jobs, processors, origin="inference")

        return Chunk(
            cursor=chunk.ends[-1] if chunk.ends else operation.cursor,
            done=len(chunk.lines),
            counts=+additions.counts,
            is_last=chunk.is_last,
            after=tell,
        )

    return write


def _within_memory(deps: Deps, split: Split, chunk: Lines) -> Lines:
    """As many of the lines as can be placed in the texts of stored items at once."""
    spans = {line.given.external_id for line in chunk.lines if rule.may_hold_spans(line.given)}
    if not spans:
        return chunk
    # Also items named by another line of the same id: the texts of all of them will be read.
    given = [line.given for line in chunk.lines if line.given.external_id in spans]
    with deps.db.look() as tx:
        known = inferences.find_known(tx, split.dataset_id, spans)
        named = {each.item_id for each in known.values()}
        named |= {id_ for each in given if (id_ := datasets.as_id(each.item))}
        sizes = inferences.read_text_sizes(tx, split.user_id, named)
    total = 0
    for position, line in enumerate(chunk.lines):
        found = known.get(line.given.external_id)
        id_ = found.item_id if found else datasets.as_id(line.given.item)
        total += sizes.pop(id_, 0) if id_ else 0
        if total > _TEXT_BYTES:
            return chunk.cut(max(position, 1))
    return chunk


def _with_files(deps: Deps, split: Split, chunk: Lines) -> tuple[Lines, FileItems]:
    """The items that named files become, of as many lines as there is time for."""
    named = [line.given for line in chunk.lines if line.given.blob and not line.given.item]
    if not named:
        return chunk, {}
    with deps.db.look() as tx:
        owned = inferences.find_owned_blobs(tx, split.user_id, {each.blob for each in named})
        known = inferences.find_known(tx, split.dataset_id, {each.external_id for each in named})
    found: dict[tuple[str, str], items.NewItem | str] = {}
    until = time.monotonic() + min(_FILES_S, deps.settings.lease_s / 6)
    for position, line in enumerate(chunk.lines, start=1):
        given = line.given
        key = given.external_id, given.blob
        if given.blob and not given.item and given.external_id not in known and key not in found:
            found[key] = _file_item(deps, split, given, owned)
        if time.monotonic() > until:
            return chunk.cut(position), found
    return chunk, found


def _file_item(deps: Deps, split: Split, given: Given, owned: set[str]) -> items.NewItem | str:
    if given.blob not in owned:
        return UNKNOWN_BLOB
    path, name = deps.blobs.path(given.blob), given.name
    if given.extension and not extension_of(name):
        name = f"{name or 'file'}.{given.extension}"
    try:
        return ingest.file_item(deps, split, path, name=name, text=given.text)
    except Invalid:
        return TEXT_TOO_LONG
    except OSError:  # the row is there, the bytes are not
        return UNKNOWN_BLOB


def _ensure_labels(deps: Deps, split: Split, lines: Sequence[Line]) -> dict[str, UUID]:
    """Find or create the labels of a chunk, in a short transaction of its own where it must."""
    wanted = {
        name: normalise_label(name)
        for line in lines
        for name in rule.labels_of(line.given.predictions, multi_label=split.multi_label)
    }
    if not wanted:
        return {}
    with deps.db.look() as tx:
        found = inferences.find_labels(tx, split.version_id, wanted)
        room = MOST_LABELS - inferences.count_labels(tx, split.version_id)
    new = [name for name, form in wanted.items() if form not in found]
    if not new or room <= 0:
        return found

    def create(tx: Tx) -> tuple[dict[str, UUID], list[str]]:
        return labels.ensure_labels(
            tx, split.version_id, split.user_id, new, post_processor_id=None, cap=MOST_LABELS
        )

    ids, created = deps.db.transact(create)
    if created:
        event = LabelsCreated(version_id=split.version_id, post_processor="", names=tuple(created))
        deps.emit([event])
    return found | {wanted[name]: id_ for name, id_ in ids.items()}


@dataclass(slots=True, kw_only=True)
class _Found:
    """What the dataset knows of a chunk's inferences; grows as the chunk is gone through."""

    known: dict[str, Known]
    touched: dict[UUID, Touched]
    """Items that are there."""
    deleted: set[UUID]


def _gather(
    tx: Tx,
    split: Split,
    lines: Sequence[Line],
    files: FileItems,
    label_ids: Mapping[str, UUID] | None,
) -> Additions:
    """Lock, read and decide what the lines add."""
    inferences.lock_dataset(tx, split.dataset_id)
    found = _find(tx, split, [line.given for line in lines])
    wanted = None
    if label_ids is not None:
        held = labels.lock_labels(tx, label_ids.values())
        wanted = LabelIds(known=label_ids, held=held)
    additions = Additions(split, wanted)
    for line in lines:
        _apply(additions, found, split, line, files)
    return additions


def _find(tx: Tx, split: Split, given: Sequence[Given]) -> _Found:
    known = inferences.find_known(tx, split.dataset_id, {each.external_id for each in given})
    # One id may stand in several lines, of which some name an item, or different ones.
    about: dict[str, set[UUID]] = {id_: {found.item_id} for id_, found in known.items()}
    for each in given:
        named = datasets.as_id(each.item) if each.item else None
        if named is not None and each.external_id not in known:
            about.setdefault(each.external_id, set()).add(named)
    ids = set[UUID]().union(*about.values())
    locked = inferences.lock_items(tx, split.user_id, split.dataset_id, ids)
    there = {id_: item for id_, item in locked.items() if item.deleted_at is None}
    pairs = [(id_, split.version_id) for id_ in there]
    existing = annotations.read_existing(tx, pairs)
    splits = items.read_splits(tx, pairs)
    spans = set[UUID]().union(
        *(about.get(each.external_id, ()) for each in given if rule.may_hold_spans(each))
    )
    texts = items.read_texts(tx, [id_ for id_ in there if id_ in spans])
    touched = {
        id_: Touched(
            id=id_,
            about=_about(item, texts.get(id_)),
            existing=existing.get((id_, split.version_id), []),
            splits=splits.get((id_, split.version_id), []),
        )
        for id_, item in there.items()
    }
    return _Found(known=known, touched=touched, deleted=locked.keys() - there.keys())


def _about(item: LinkedItem | items.NewItem, text: str | None) -> About:
    return About(
        family=family(item.media_type, item.extension),
        text=text,
        width=item.width,
        height=item.height,
        duration_s=item.duration_s,
        nuls=nuls_in(text or ""),
    )


def _apply(additions: Additions, found: _Found, split: Split, line: Line, files: FileItems) -> None:
    """Add what one inference says, or count why nothing of it is added."""
    given = line.given
    known = found.known.get(given.external_id)
    touched = _linked(found, given, known)
    if touched is None:
        touched = _created(additions, split, given, files)
    if isinstance(touched, str):
        additions.counts[f"skipped_{touched}"] += 1
        return
    if known is not None:
        additions.counts["repeated"] += 1
    elif given.item:
        additions.counts["items_linked"] += 1
    additions.join(touched)
    additions.became[given.external_id] = touched.id
    if known is None:
        known = Known(additions.record(given.external_id, touched, line.raw), touched.id)
        additions.counts["refused_values"] += line.refused
        found.known[given.external_id] = known
        found.touched[touched.id] = touched
    additions.annotate(touched, given, known.id)


def _linked(found: _Found, given: Given, known: Known | None) -> Touched | str | None:
    """The item that is there, why it cannot be used, or None where one is to be made."""
    if known is None and not given.item:
        return None
    named = datasets.as_id(given.item) if given.item else None
    if known is not None and given.item and named != known.item_id:
        return OTHER_ITEM
    id_ = known.item_id if known is not None else named
    if id_ is None:
        return UNKNOWN_ITEM
    if id_ in found.deleted:
        return DELETED_ITEM
    return found.touched.get(id_, UNKNOWN_ITEM)


def _created(additions: Additions, split: Split, given: Given, files: FileItems) -> Touched | str:
    item = files.get((given.external_id, given.blob)) if given.blob else _plain_item(split, given)
    if item is None:
        # Its file was not looked at: it was known then, and is no more.
        return UNKNOWN_BLOB
    if isinstance(item, str):
        return item
    if given.is_file and item.content_sha256 is None:
        additions.counts["items_without_file"] += 1
    # Spans count in the text as it was given; what PostgreSQL refuses is taken out of both.
    return additions.create(item, _about(item, given.text or item.text))


def _plain_item(split: Split, given: Given) -> items.NewItem:
    """The item of a text, or of a file that is not here: its place until the file is uploaded."""
    text = clean_text(given.text)[0] if given.text else ""
    extension = extension_of(f"x.{given.extension}") if given.extension else ""
    return items.NewItem(
        id=new_id(),
        dataset_id=split.dataset_id,
        user_id=split.user_id,
        name=clean_name(given.name) if given.is_file else "",
        text=text or None,
        extension=extension if given.is_file else "txt",
        media_type="" if given.is_file else "text/plain",
    )
