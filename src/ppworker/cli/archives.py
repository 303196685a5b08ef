"""``datasets import`` and ``datasets export``: archives in and out."""

import shutil
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from ppworker.cli import operations, render
from ppworker.cli.operations import Wait
from ppworker.cli.session import Call, Session, command, session
from ppworker.cli.versions import DatasetRef, find
from ppworker.domain.job import Status
from ppworker.errors import Invalid, NotFound
from ppworker.pipeline.transfer import export, shelf, stage
from ppworker.store import datasets
from ppworker.store import operations as store
from ppworker.store.datasets import Dataset, Split

_File = Annotated[str, typer.Argument(metavar="FILE", help="A zip archive.", show_default=False)]
_Version = Annotated[
    str | None,
    typer.Option("--version", metavar="VERSION", help="Name or id. Default: the newest."),
]
_FORMATS = "folders, yolo, csv, spacy-ner, coco, labelstudio or ppworker"


def add_to(group: typer.Typer) -> None:
    """Add both commands to the group of datasets."""
    command(group, "import")(import_archive)
    command(group, "export")(export_archive)


def import_archive(
    call: Call,
    dataset: DatasetRef,
    file: _File,
    *,
    version: _Version = None,
    format_name: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help=f"{_FORMATS}. Default: it is found out."),
    ] = None,
    wait: Wait = True,
) -> None:
    """Check an archive, then add all its items to a dataset."""
    with session(call) as s:
        into = _version_id(s, dataset, version)
        try:
            with (
                Path(file).open("rb") as source,
                s.deps.blobs.receive(source, limit=s.deps.settings.max_file_bytes) as path,
            ):
                accepted = stage.take_archive(s.deps, s.user_id, into, path, format_name)
        except OSError as error:
            if error.filename != file:
                raise  # our own store, whose disk is full for instance
            raise Invalid(f"'{file}' cannot be read ({error.strerror})", field="FILE") from error
        if wait:
            done = operations.follow(s, accepted.operation_id)
        else:
            found = s.read(lambda tx: store.find_operation(tx, s.user_id, accepted.operation_id))
            if found is None:
                raise NotFound("the operation is gone", field="operation")
            done = found
    operations.finish(call, done)


def export_archive(
    call: Call,
    dataset: DatasetRef,
    file: _File,
    *,
    version: _Version = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="SPLIT", help="Only this one, by its name.")
    ] = None,
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="FORMAT", help=f"{_FORMATS}. Default: the usual of the dataset."
        ),
    ] = None,
) -> None:
    """Write a dataset into an archive; what its format cannot hold is counted."""
    with session(call) as s:
        source = _version_id(s, dataset, version)
        if format_name is not None:
            stage.known_format(format_name)
        asked = export.begin(
            s.deps,
            s.user_id,
            source,
            split=None if split is None else _split(s, source, split),
            format_name=format_name,
        )
        done = operations.follow(s, asked.operation_id)
        if done.status == Status.COMPLETED:
            try:
                shutil.copyfile(export.archive(s.deps, done), file)
            except OSError as error:
                raise Invalid(
                    f"'{file}' cannot be written ({error.strerror})", field="FILE"
                ) from error
            finally:
                shelf.drop(s.deps, done.id)
    if not call.as_json:
        for word, count in done.result.get("losses", {}).items():
            render.say(f"  {count:>9} {word.replace('_', ' ')} cannot be held by {asked.format}")
    operations.finish(call, done)


def _version_id(s: Session, dataset: str, version: str | None) -> UUID:
    if version is not None:
        return find(s, dataset, version).id
    newest: Dataset = s.read(lambda tx: datasets.get_dataset(tx, s.user_id, dataset))
    return newest.version_id


def _split(s: Session, version_id: UUID, name: str) -> Split:
    splits: list[Split] = s.read(lambda tx: datasets.list_splits_of(tx, [version_id]))
    found = next((split for split in splits if name in {split.name, str(split.id)}), None)
    if found is None:
        raise NotFound(
            f"no split '{name}'; there are {', '.join(split.name for split in splits)}",
            field="--split",
        )
    return found
