"""Makes, changes and deletes annotations as people do, one transaction for each edit."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from ppworker.domain import coordinates, edit
from ppworker.domain.coordinates import About, Place
from ppworker.domain.drop import Reason
from ppworker.domain.text import clean_text
from ppworker.errors import Invalid, NotFound
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.edits.held import counted, held
from ppworker.store import annotations, datasets, edits, item_pages
from ppworker.store.annotations import NewAnnotation
from ppworker.store.db import Tx
from ppworker.store.edits import Annotation, Change
from ppworker.store.ids import new_id
from ppworker.store.item_pages import Item

_WRONG_PLACE = {
    Reason.OUTSIDE: "lies outside the item",
    Reason.ZERO_AREA: "has no width or no height",
    Reason.EMPTY: "ends where it begins, or before",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class New:
    """An annotation to be, of an item that the caller names beside it."""

    label_id: UUID
    split_id: UUID | None = None
    """None: the first split of the item."""
    where: edit.Wanted = field(default_factory=edit.Wanted)
    path: str = ""
    """Put before the names of fields in errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """New values of an annotation; None leaves one as it is."""

    label_id: UUID | None = None
    item_id: UUID | None = None
    """Only to be told that it cannot be another one."""
    split_id: UUID | None = None
    coordinates: str | None = None
    page: int | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An annotation, with what its reader must know of its item."""

    row: Annotation
    split_id: UUID | None
    """A split of the item, for annotations that know none themselves."""
    item_text: str | None


def annotate(deps: Deps, version_id: UUID, user_id: UUID, item_id: UUID, new: New) -> Shown:
    """Annotate an item; where a dataset takes one label per item, in place of the one it has.

    Args:
        deps: the collaborators.
        version_id: of a dataset that the caller may write to.
        user_id: who annotates.
        item_id: the item.
        new: what to say of it.

    Raises:
        Invalid: the item, label or split is not in the version, or the place not on the item.
    """

    def work(tx: Tx) -> Shown:
        with held(tx, version_id, [item_id]):
            item = _item(tx, version_id, item_id)
            (id_,) = _insert(tx, version_id, user_id, item, [new])
        return _shown(tx, version_id, item, id_)

    return deps.db.transact(work)


def annotate_new(
    version_id: UUID, user_id: UUID, new: Sequence[New], *, item_text: str
) -> Callable[[Tx, UUID], None]:
    """Writes annotations of an item in the transaction that makes it.

    Args:
        version_id: of a dataset that the caller may write to.
        user_id: who annotates.
        new: what to say of the item.
        item_text: of the item, as the client gave it and counts in it.

    Raises:
        Invalid: as for `annotate`, or when places in the text would move; when it is called.
    """

    def write(tx: Tx, item_id: UUID) -> None:
        if not new:
            return
        if clean_text(item_text)[1]:
            raise Invalid(
                "has characters that cannot be stored (NUL, or half of one), which would move "
                "its annotations; take them out",
                field="text",
            )
        with counted(tx, version_id, [item_id]):
            _insert(tx, version_id, user_id, _item(tx, version_id, item_id), new)

    return write


def change(deps: Deps, version_id: UUID, id_: UUID, wanted: Changed) -> Shown:
    """Change an annotation, whoever made it; what a model said is then edited, and stays so.

    Raises:
        NotFound: the version has no such annotation.
        Invalid: a new value does not fit the item or the version.
    """

    def work(tx: Tx) -> Shown:
        item_id = _live(tx, version_id, id_).item_id
        with held(tx, version_id, [item_id]):
            row = _live(tx, version_id, id_)
            if wanted.item_id not in {None, item_id}:
                raise Invalid("an annotation stays with its item; make a new one", field="item_id")
            item = _item_of(tx, version_id, row)
            _change(tx, version_id, item, row, wanted)
        return _shown(tx, version_id, item, id_)

    return deps.db.transact(work)


def delete(deps: Deps, version_id: UUID, id_: UUID) -> Shown:
    """Delete an annotation, whoever made it; a model's leaves a tombstone and does not come back.

    Raises:
        NotFound: the version has no such annotation.
    """

    def work(tx: Tx) -> Shown:
        item_id = _live(tx, version_id, id_).item_id
        with held(tx, version_id, [item_id]):
            row = _live(tx, version_id, id_)
            was = _shown_row(tx, version_id, _item_of(tx, version_id, row), row)
            edits.remove(tx, [id_])
        return was

    return deps.db.transact(work)


def find(tx: Tx, version_id: UUID, id_: UUID, *, buried: bool = False) -> Shown:
    """An annotation of a version.

    Args:
        tx: to read with.
        version_id: the version.
        id_: the annotation.
        buried: whether the tombstone of one that a person deleted will do.

    Raises:
        NotFound: the version has no such annotation.
    """
    row = edits.find_annotation(tx, version_id, id_)
    if row is None or (row.deleted_at is not None and not buried):
        raise _no_annotation(id_)
    return _shown_row(tx, version_id, _item_of(tx, version_id, row), row)


def _insert(tx: Tx, version_id: UUID, user_id: UUID, item: Item, new: Sequence[New]) -> list[UUID]:
    """Write annotations of a held item."""
    labels = edits.hold_labels(tx, version_id, {each.label_id for each in new})
    splits = _splits(tx, version_id, item.id)
    rows: list[NewAnnotation] = []
    for each in new:
        if each.label_id not in labels:
            raise _no_label(each.label_id, each.path)
        place = _placed(item, each.where, each.path)
        rows.append(
            NewAnnotation(
                id=new_id(),
                version_id=version_id,
                item_id=item.id,
                label_id=each.label_id,
                split_id=_split(splits, each.split_id, each.path),
                user_id=user_id,
                kind=place.kind,
                geometry=_geometry(place),
                coordinates=place.coordinates,
                text=place.text,
                page=each.where.page,
                score=None,
                source="human",
                post_processor_id=None,
                job_id=None,
                model_version="",
                review="accepted",
                fingerprint=None,
            )
        )
    classes = [position for position, row in enumerate(rows) if row.kind == "class"]
    if classes and not _takes_many(tx, version_id):
        if len(classes) > 1:
            raise Invalid(
                "the dataset takes one label per item, and another one stands before this",
                field=new[classes[1]].path.rstrip("."),
            )
        edits.remove(tx, edits.list_standing_classes(tx, version_id, item.id))
    annotations.insert_annotations(tx, rows)
    return [row.id for row in rows]


def _change(tx: Tx, version_id: UUID, item: Item, row: Annotation, wanted: Changed) -> None:
    """Write what differs of a live annotation of a held item."""
    label_id = wanted.label_id or row.label_id
    if label_id != row.label_id and not edits.hold_labels(tx, version_id, [label_id]):
        raise _no_label(label_id)
    splits = _splits(tx, version_id, item.id)
    split_id = row.split_id
    if wanted.split_id not in {None, row.split_id or (splits[0] if splits else None)}:
        split_id = _split(splits, wanted.split_id)
    place, text = _moved(item, row, wanted)
    kind, where = row.kind, row.coordinates
    if place is not None:
        kind, where = place.kind, place.coordinates
    page = row.page if wanted.page is None else wanted.page
    said = (label_id, kind, where, text, page)
    is_edited = said != (row.label_id, row.kind, row.coordinates, row.text, row.page)
    if not is_edited and split_id == row.split_id:
        return
    if kind == "class" and row.kind != "class" and not _takes_many(tx, version_id):
        edits.remove(tx, edits.list_standing_classes(tx, version_id, item.id))
    new = Change(
        label_id=label_id,
        split_id=split_id,
        kind=kind,
        geometry=None if place is None else _geometry(place),
        coordinates=where,
        text=text,
        page=page,
        # A split is only where it was made: to name another one is no opinion of what is said.
        review=edit.review_after_edit(row.source) if is_edited else row.review,
    )
    edits.update_annotation(tx, row.id, new, is_moved=place is not None)


def _moved(item: Item, row: Annotation, wanted: Changed) -> tuple[Place | None, str | None]:
    """Where it goes, None where it stays, and its text.

    A place that is sent back as it was read stays, whatever it is: not every place can be said in
    coordinates.
    """
    where = edit.Wanted(
        coordinates=row.coordinates if wanted.coordinates is None else wanted.coordinates,
        page=row.page if wanted.page is None else wanted.page,
        text=row.text if wanted.text is None else wanted.text or None,
    )
    if where.coordinates == row.coordinates:
        _check(where, item, "")
        return None, row.text if row.kind == "span" else where.text
    place = _placed(item, where)
    return place, place.text


def _placed(item: Item, where: edit.Wanted, path: str = "") -> Place:
    _check(where, item, path)
    about = About(
        family=coordinates.family(item.media_type, item.extension),
        text=item.text,
        width=item.width,
        height=item.height,
        duration_s=item.duration_s,
    )
    found = edit.place(where, about)
    if isinstance(found, Reason):
        raise Invalid(
            f"'{where.coordinates}' {_WRONG_PLACE.get(found, found)}", field=f"{path}coordinates"
        )
    return found


def _check(where: edit.Wanted, item: Item, path: str) -> None:
    for name, text in (("coordinates", where.coordinates), ("text", where.text or "")):
        if clean_text(text)[1]:
            raise Invalid(
                "has characters that cannot be stored (NUL, or half of one)", field=path + name
            )
    if where.page is not None and item.page_count and where.page >= item.page_count:
        raise Invalid(
            f"there is no page {where.page}; the item has {item.page_count}, counted from 0",
            field=f"{path}page",
        )


def _geometry(place: Place) -> str | None:
    return None if place.geometry is None else json.dumps(dict(place.geometry))


def _takes_many(tx: Tx, version_id: UUID) -> bool:
    return datasets.is_multi_label(tx, [version_id]).get(version_id, True)


def _splits(tx: Tx, version_id: UUID, item_id: UUID) -> list[UUID]:
    """Splits of an item, oldest first."""
    return item_pages.list_memberships(tx, version_id, [item_id]).get(item_id, [])


def _split(splits: Sequence[UUID], wanted: UUID | None, path: str = "") -> UUID | None:
    if wanted is None:
        return splits[0] if splits else None
    if wanted not in splits:
        raise Invalid(f"the item is not in a split '{wanted}'", field=f"{path}split_id")
    return wanted


def _item(tx: Tx, version_id: UUID, item_id: UUID) -> Item:
    found = item_pages.find_item(tx, version_id, item_id)
    if found is None:
        raise Invalid(f"the version has no item '{item_id}'", field="item_id")
    return found


def _item_of(tx: Tx, version_id: UUID, row: Annotation) -> Item:
    found = item_pages.find_item(tx, version_id, row.item_id)
    if found is None:
        raise _no_annotation(row.id)
    return found


def _live(tx: Tx, version_id: UUID, id_: UUID) -> Annotation:
    found = edits.find_annotation(tx, version_id, id_)
    if found is None or found.deleted_at is not None:
        raise _no_annotation(id_)
    return found


def _shown(tx: Tx, version_id: UUID, item: Item, id_: UUID) -> Shown:
    row = edits.find_annotation(tx, version_id, id_)
    if row is None:
        raise _no_annotation(id_)
    return _shown_row(tx, version_id, item, row)


def _shown_row(tx: Tx, version_id: UUID, item: Item, row: Annotation) -> Shown:
    splits = _splits(tx, version_id, item.id)
    return Shown(row=row, split_id=splits[0] if splits else None, item_text=item.text)


def _no_annotation(id_: UUID) -> NotFound:
    return NotFound(f"there is no annotation '{id_}' here", field="annotation")


def _no_label(id_: UUID, path: str = "") -> Invalid:
    return Invalid(f"the version has no label '{id_}'", field=f"{path}label_id")
