"""``datasets``, ``splits`` and ``labels``: create, list and delete."""

from typing import Annotated, Any

import typer

from ppworker.cli import archives, operations, render
from ppworker.cli.operations import Wait
from ppworker.cli.session import Call, command, group, session
from ppworker.domain.labels import normalise_label
from ppworker.errors import NotFound
from ppworker.pipeline.setup import catalogue
from ppworker.pipeline.transfer import delete
from ppworker.store import datasets, labels, versions
from ppworker.store.db import Tx
from ppworker.store.labels import Label

Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
DatasetRef = Annotated[
    str, typer.Argument(metavar="DATASET", help="Name or id of a dataset.", show_default=False)
]

_datasets = typer.Typer()
_splits = typer.Typer()
_labels = typer.Typer()


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add one of the groups to the program."""
    group(root, {"datasets": _datasets, "splits": _splits, "labels": _labels}[name], name, summary)


@command(_datasets, "create")
def create_dataset(
    call: Call,
    *,
    name: Name,
    single_label: Annotated[
        bool, typer.Option("--single-label", help="One class label per item.")
    ] = False,
    split: Annotated[
        list[str] | None,
        typer.Option("--split", metavar="NAME", help="Repeatable; default train, valid, test."),
    ] = None,
) -> None:
    """Create a dataset with its splits."""
    with session(call) as s:
        made = catalogue.create_dataset(
            s.deps,
            s.user_id,
            name,
            multi_label=not single_label,
            splits=split or None,
        )
        splits = s.read(lambda tx: datasets.list_splits(tx, s.user_id, made.version_id))
    if call.as_json:
        render.as_json(_dataset(made) | {"splits": [_split(each) for each in splits]})
    else:
        names = ", ".join(each.name for each in splits)
        render.say(f"dataset {made.name} ({made.id}) with splits {names}")


@command(_datasets, "list")
def list_datasets(call: Call) -> None:
    """List datasets, newest first."""
    with session(call) as s:
        found = s.read(lambda tx: datasets.list_datasets(tx, s.user_id))
    rows = [_dataset(each) for each in found]
    if call.as_json:
        render.as_json(rows)
    else:
        columns = ("id", "name", "multi_label", "created_at")
        render.table(rows, columns, empty="no datasets; `ppworker datasets create NAME` makes one")


@command(_datasets, "delete")
def delete_dataset(call: Call, dataset: DatasetRef, *, wait: Wait = True) -> None:
    """Delete a dataset with all that is in it; it is gone at once, its rows go step by step."""
    with session(call) as s:
        found = s.read(lambda tx: datasets.get_dataset(tx, s.user_id, dataset))
        done = operations.ended(s, delete.dataset(s.deps, found), wait=wait)
    operations.finish(call, done)


archives.add_to(_datasets)


@command(_splits, "create")
def create_split(call: Call, dataset: DatasetRef, name: Name) -> None:
    """Create a split in a dataset."""
    with session(call) as s:
        parent = s.read(lambda tx: datasets.get_dataset(tx, s.user_id, dataset))
        made = catalogue.create_split(s.deps, parent.version_id, s.user_id, name)
    if call.as_json:
        render.as_json(_split(made))
    else:
        render.say(f"split {made.dataset_name}/{made.name} ({made.id})")


@command(_splits, "list")
def list_splits(call: Call, dataset: DatasetRef) -> None:
    """List the splits of a dataset."""
    with session(call) as s:
        parent = s.read(lambda tx: datasets.get_dataset(tx, s.user_id, dataset))
        found = s.read(lambda tx: datasets.list_splits(tx, s.user_id, parent.version_id))
    rows = [_split(each) for each in found]
    if call.as_json:
        render.as_json(rows)
    else:
        render.table(rows, ("id", "name"), empty="no splits")


@command(_splits, "delete")
def delete_split(
    call: Call,
    split: Annotated[
        str, typer.Argument(metavar="SPLIT", help="DATASET/SPLIT or an id.", show_default=False)
    ],
    *,
    wait: Wait = True,
) -> None:
    """Delete a split with the items that are in no other one."""
    with session(call) as s:
        found = s.read(lambda tx: datasets.get_split(tx, s.user_id, split))
        done = operations.ended(s, delete.split(s.deps, found), wait=wait)
    operations.finish(call, done)


@command(_labels, "create")
def create_label(call: Call, dataset: DatasetRef, name: Name) -> None:
    """Create a label in a dataset."""
    with session(call) as s:
        parent = s.read(lambda tx: datasets.get_dataset(tx, s.user_id, dataset))
        made = catalogue.create_label(s.deps, parent.version_id, s.user_id, name)
    if call.as_json:
        render.as_json(made)
    else:
        render.say(f"label {made.name} ({made.id})")


@command(_labels, "list")
def list_labels(call: Call, dataset: DatasetRef) -> None:
    """List the labels of a dataset."""
    with session(call) as s:
        parent = s.read(lambda tx: datasets.get_dataset(tx, s.user_id, dataset))
        found = s.read(lambda tx: labels.list_labels(tx, parent.version_id))
    rows = [render.plain(each) for each in found]
    if call.as_json:
        render.as_json(rows)
    else:
        render.table(rows, ("id", "index", "name", "color"), empty="no labels yet")


@command(_labels, "delete")
def delete_label(call: Call, dataset: DatasetRef, name: Name, *, wait: Wait = True) -> None:
    """Delete a label of a dataset with its annotations."""
    with session(call) as s:
        parent = s.read(lambda tx: datasets.get_dataset(tx, s.user_id, dataset))
        found = s.read(lambda tx: _label(tx, parent, name))
        version = s.read(
            lambda tx: versions.find_version(tx, s.user_id, parent.id, parent.version_id)
        )
        if version is None:
            raise NotFound(f"dataset '{parent.name}' was deleted", field="dataset")
        done = operations.ended(s, delete.label(s.deps, version, found), wait=wait)
    operations.finish(call, done)


def _label(tx: Tx, dataset: datasets.Dataset, name: str) -> Label:
    form, id_ = normalise_label(name), datasets.as_id(name)
    for label in labels.list_labels(tx, dataset.version_id):
        if label.id == id_ or normalise_label(label.name) == form:
            return label
    raise NotFound(
        f"no label '{name}'; `ppworker labels list {dataset.name}` shows those there are",
        field="name",
    )


def _dataset(dataset: datasets.Dataset) -> dict[str, Any]:
    values: dict[str, Any] = render.plain(dataset)
    return values | {"version_id": values.pop("newest_version_id")}


def _split(split: datasets.Split) -> dict[str, Any]:
    return {
        "id": str(split.id),
        "name": split.name,
        "reference": f"{split.dataset_name}/{split.name}",
        "dataset_id": str(split.dataset_id),
        "version_id": str(split.version_id),
    }
