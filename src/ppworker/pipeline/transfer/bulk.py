"""Takes thousands of items in one request: all of them are checked, then imported, or none is.

They come as JSON Lines, one item a line, or as files, packed into an archive as they arrive. From
there on they are an import like any other.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ppworker.domain.labels import MAX_NAME
from ppworker.domain.text import clean_text
from ppworker.errors import Invalid, Malformed, TooLarge
from ppworker.formats import json_stream
from ppworker.formats.archive import Archive, open_archive
from ppworker.formats.base import Header, Mark, Record
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.inferences.inference_lines import lines_of
from ppworker.pipeline.transfer import shelf, stage
from ppworker.pipeline.transfer.stage import Accepted
from ppworker.pipeline.uploads.names import extension_of
from ppworker.store import datasets, labels
from ppworker.store.datasets import as_id
from ppworker.store.ids import new_id
from ppworker.store.transfers import Target

_MOST_NAME = 10_000
_MOST_COORDINATES = 100_000
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Name = Annotated[str, Field(max_length=MAX_NAME)]


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Annotation(_Shape):
    label: _Name | None = None
    label_id: _Name | None = None
    coordinates: Annotated[str, Field(max_length=_MOST_COORDINATES)] | None = None
    confidence: _Share | None = None


class _Reference(_Shape):
    id: _Name | None = None
    name: _Name | None = None


class _Item(_Shape):
    name: Annotated[str, Field(max_length=_MOST_NAME)] | None = None
    description: Annotated[str, Field(max_length=_MOST_NAME)] | None = None
    text: str | None = None
    extension: Annotated[str, Field(max_length=32)] | None = None
    metadata: str | dict[str, Any] | None = None
    splits: Annotated[list[_Name | _Reference], Field(max_length=1_000)] | None = None
    annotations: Annotated[list[_Annotation], Field(max_length=stage.MOST_MARKS)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFile:
    """A file of a request, in the archive it was packed into."""

    member: str
    name: str
    """As the client calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What items may name by id."""

    splits: Mapping[UUID, str]
    labels: Mapping[UUID, str]


def take_lines(
    deps: Deps, user_id: UUID, version_id: UUID, path: Path, *, key: str | None = None
) -> Accepted:
    """Accept the items of a JSON Lines file for a version.

    Args:
        deps: the collaborators.
        user_id: who brings them.
        version_id: where they go; that they may is the caller's to know.
        path: the file.
        key: idempotency key; the same key with the same items names the first operation.

    Raises:
        Invalid: a line breaks a rule; its field is ``line 17: annotations[0].label_id``, for
            instance. Nothing is written.
        Conflict: the key was used for something else.
        NotFound: the version is gone.
    """
    into = stage.target(deps, version_id)
    known = _known(deps, into)
    return _stage(deps, user_id, into, _records(deps, path, known), key=key)


def take_files(
    deps: Deps,
    user_id: UUID,
    version_id: UUID,
    path: Path,
    files: Sequence[PackedFile],
    *,
    split: str | None = None,
    key: str | None = None,
) -> Accepted:
    """Accept files that were packed into an archive of our own, each to be an item; as above.

    Args:
        deps: the collaborators.
        user_id: who brings them.
        version_id: where they go.
        path: the archive, inside the blob store; it is taken away from there.
        files: its members.
        split: id or name of the split they go to.
        key: idempotency key.

    Raises:
        Invalid: the split is not one of the version's, or there is no file.
    """
    into = stage.target(deps, version_id)
    splits = () if not split else (_split(split, _known(deps, into), "split_id"),)
    records = (
        Record(
            name=file.name,
            member=file.member,
            splits=splits,
            extension=extension_of(file.name),
            where=file.name,
        )
        for file in files
    )
    return _stage(deps, user_id, into, records, key=key, path=path)


def _known(deps: Deps, into: Target) -> _Known:
    with deps.db.look() as tx:
        splits = datasets.list_splits_of(tx, [into.version_id])
        all_labels = labels.list_labels(tx, into.version_id)
    return _Known(
        splits={split.id: split.name for split in splits},
        labels={label.id: label.name for label in all_labels},
    )


def _stage(
    deps: Deps,
    user_id: UUID,
    into: Target,
    records: Iterator[Record],
    *,
    key: str | None,
    path: Path | None = None,
) -> Accepted:
    operation_id = new_id()
    packed: AbstractContextManager[Archive | None] = nullcontext()
    if path is not None:
        packed = open_archive(path, stage.limits(deps), is_known=True)
    with packed as archive, shelf.staging(deps, operation_id) as folder:
        total = stage.write_manifest(deps, folder, Header(), records, archive)
        if not total:
            raise Invalid("the body holds no item", field="body")
        if path is not None:
            path.replace(folder / shelf.ARCHIVE)
        return stage.accept(
            deps, user_id, into, operation_id, folder, total=total, result={}, key=key
        )


def _records(deps: Deps, path: Path, known: _Known) -> Iterator[Record]:
    most_bytes = 4 * deps.settings.max_text_bytes + 1024 * 1024
    for total, (line, place) in enumerate(lines_of(path, most_bytes), start=1):
        if total > deps.settings.max_bulk_items:
            raise TooLarge(
                f"the body has more than {deps.settings.max_bulk_items} items; send several "
                "requests, or raise PPWORKER_MAX_BULK_ITEMS",
                field=place.prefix,
            )
        if len(line) > most_bytes:
            raise TooLarge(f"has more than {most_bytes} bytes", field=place.prefix)
        if json_stream.has_too_many_values(line):
            most = json_stream.MAX_VALUES
            raise TooLarge(f"holds more than {most} values", field=place.prefix)
        yield _record(deps, line, known, place.prefix)


def _record(deps: Deps, line: bytes, known: _Known, where: str) -> Record:
    try:
        item = _Item.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        kind = Malformed if first["type"] == "json_invalid" else Invalid
        raise kind(_sentence(first), field=_field(where, first["loc"])) from None
    text = item.text or ""
    if len(text) * 4 > deps.settings.max_text_bytes:
        size = len(clean_text(text)[0].encode())
        if size > deps.settings.max_text_bytes:
            raise TooLarge(
                f"has {size} bytes, more than {deps.settings.max_text_bytes}; cut it up, or raise "
                "PPWORKER_MAX_TEXT_BYTES",
                field=_field(where, ("text",)),
            )
    extension = (item.extension or "").strip().removeprefix(".")
    if extension and not extension_of(f"item.{extension}"):
        raise Invalid("is no file extension; write one like png", field=f"{where}: extension")
    metadata = item.metadata or ""
    return Record(
        name=item.name or "",
        description=item.description or "",
        text=item.text or None,
        extension=extension,
        metadata=metadata if isinstance(metadata, str) else json.dumps(metadata),
        splits=tuple(
            _split(_named(each), known, _field(where, ("splits", position)))
            for position, each in enumerate(item.splits or ())
        ),
        marks=tuple(
            _mark(each, known, where, position)
            for position, each in enumerate(item.annotations or ())
        ),
        where=where,
    )


def _named(split: str | _Reference) -> str:
    return split if isinstance(split, str) else split.id or split.name or ""


def _split(reference: str, known: _Known, field: str) -> str:
    """The name of the split that is meant; one that is not there is made by the import."""
    id_ = as_id(reference)
    if id_ is not None:
        if id_ not in known.splits:
            raise Invalid(f"the version has no split '{reference}'", field=field)
        return known.splits[id_]
    name = " ".join(clean_text(reference)[0].split())
    if not name:
        raise Invalid("must be the id or the name of a split", field=field)
    return name


def _mark(said: _Annotation, known: _Known, where: str, position: int) -> Mark:
    def field(name: str) -> str:
        return _field(where, ("annotations", position, name))

    label = " ".join(clean_text(said.label or "")[0].split())
    if said.label_id:
        id_ = as_id(said.label_id)
        if id_ is None or id_ not in known.labels:
            raise Invalid(f"the version has no label '{said.label_id}'", field=field("label_id"))
        label = known.labels[id_]
    if not label:
        raise Invalid("must be the name of a label, or give its label_id", field=field("label"))
    return Mark(
        label=label,
        coordinates=clean_text(said.coordinates or "")[0].strip(),
        score=said.confidence,
    )


def _field(where: str, location: Sequence[int | str]) -> str:
    """``line 17: annotations[0].label_id``."""
    path = ""
    for part in location:
        if part in {"str", "constrained-str", "_Reference", "dict[str,any]"}:
            continue  # which of two shapes was tried
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return f"{where}: {path}" if path else where


def _sentence(error: Mapping[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"is no JSON: {error.get('ctx', {}).get('error', error['msg'])}"
    if error["type"] in {"model_type", "model_attributes_type"}:
        return "must be an object"
    message = str(error["msg"])
    return message[:1].lower() + message[1:]
