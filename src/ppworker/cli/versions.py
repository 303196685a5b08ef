"""``versions``: list, duplicate and delete versions of a dataset."""

from typing import Annotated

import typer

from ppworker.cli import operations, render
from ppworker.cli.operations import Wait
from ppworker.cli.session import Call, Session, command, group, session
from ppworker.errors import NotFound
from ppworker.pipeline.transfer import delete, duplicate
from ppworker.store import datasets, versions
from ppworker.store import operations as store
from ppworker.store.db import Tx
from ppworker.store.versions import Version

DatasetRef = Annotated[
    str, typer.Argument(metavar="DATASET", help="Name or id of a dataset.", show_default=False)
]
VersionRef = Annotated[
    str,
    typer.Argument(
        metavar="VERSION", help="Name or id of a version of the dataset.", show_default=False
    ),
]

_versions = typer.Typer()


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add the group to the program."""
    group(root, _versions, name, summary)


@command(_versions, "list")
def list_versions(call: Call, dataset: DatasetRef) -> None:
    """List the versions of a dataset, oldest first."""
    with session(call) as s:
        parent = s.read(lambda tx: datasets.get_dataset(tx, s.user_id, dataset))
        found = s.read(lambda tx: versions.list_versions(tx, [parent.id]))
    rows = [render.plain(each) for each in found]
    if call.as_json:
        render.as_json(rows)
    else:
        render.table(rows, ("id", "name", "description", "created_at"), empty="no versions")


@command(_versions, "duplicate")
def duplicate_version(
    call: Call,
    dataset: DatasetRef,
    version: VersionRef,
    *,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Default: its name and the word copy.")
    ] = "",
    wait: Wait = True,
) -> None:
    """Duplicate a version: labels, splits, annotations and states; items and files are shared."""
    with session(call) as s:
        source = find(s, dataset, version)
        id_ = duplicate.begin(s.deps, source, name=name)
        done = (
            operations.follow(s, id_)
            if wait
            else s.read(lambda tx: store.find_operation(tx, s.user_id, id_))
        )
    if done is None:
        raise NotFound(f"operation {id_} is gone", field="operation")
    operations.finish(call, done, version_id=str(duplicate.copy_of(done)))


@command(_versions, "delete")
def delete_version(
    call: Call, dataset: DatasetRef, version: VersionRef, *, wait: Wait = True
) -> None:
    """Delete a version with the items that no other version has."""
    with session(call) as s:
        found = find(s, dataset, version)
        done = operations.ended(s, delete.version(s.deps, found), wait=wait)
    operations.finish(call, done)


def find(s: Session, dataset: str, version: str) -> Version:
    """The version that an id or a name means, where one version only has that name."""

    def read(tx: Tx) -> list[Version]:
        parent = datasets.get_dataset(tx, s.user_id, dataset)
        id_ = datasets.as_id(version)
        found = versions.list_versions(tx, [parent.id])
        return [each for each in found if each.id == id_ or each.name == version]

    found: list[Version] = s.read(read)
    if len(found) != 1:
        raise NotFound(
            f"{len(found) or 'no'} versions '{version}'; give the id that `ppworker versions list "
            f"{dataset}` shows",
            field="version",
        )
    return found[0]
