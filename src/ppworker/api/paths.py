"""What the path names, checked as a whole: each part belongs to the one before it, and the first to
whoever asks, or to somebody who shares it with them. What is somebody else's is not there.

Whoever may look at a dataset may read every path in it; any other method needs the right to write.
What is made beneath a dataset belongs to the dataset's owner: handlers take `user_id` from what is
found here, not from who asks.
"""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request

from ppworker.api.auth import READING, Caller, Room
from ppworker.errors import Forbidden, Invalid, NotFound
from ppworker.store import datasets, item_pages, versions
from ppworker.store.datasets import Dataset, Split, as_id
from ppworker.store.item_pages import Item
from ppworker.store.shares import OWNER, READER
from ppworker.store.versions import Version


def identity(given: str, what: str) -> UUID:
    """The id that a part of the path must be.

    Raises:
        NotFound: it is none, so there is nothing of that name.
    """
    found = as_id(given)
    if found is None:
        raise missing(what, given)
    return found


def identities(given: Sequence[str], field: str) -> list[UUID]:
    """The ids that a list of a body must hold.

    Raises:
        Invalid: one is none; names its place.
    """
    found = []
    for place, each in enumerate(given):
        id_ = as_id(each)
        if id_ is None:
            raise Invalid(f"'{each}' is no id", field=f"{field}[{place}]")
        found.append(id_)
    return found


def missing(what: str, given: object) -> NotFound:
    """The error of a part of the path that is not there."""
    return NotFound(f"there is no {what} '{given}' here", field=what)


def _permit(request: Request, role: str) -> None:
    """Let readers read.

    Raises:
        Forbidden: they would write. They know that it is there, so it is not hidden from them.
    """
    if role == READER and request.method not in READING:
        raise Forbidden(
            "this dataset is shared with you for reading; ask its owner for the role writer",
            field="dataset",
        )


def dataset(request: Request, deps: Room, caller: Caller, dataset_id: str) -> Dataset:
    """The dataset of the path."""
    found = _look_up(deps, caller, dataset_id)
    _permit(request, found.role)
    return found


def own_dataset(deps: Room, caller: Caller, dataset_id: str) -> Dataset:
    """The dataset of the path, for its owner alone."""
    found = _look_up(deps, caller, dataset_id)
    if found.role != OWNER:
        raise Forbidden(
            "this dataset is shared with you; ask its owner, who alone may do this",
            field="dataset",
        )
    return found


def _look_up(deps: Room, caller: Caller, dataset_id: str) -> Dataset:
    wanted = identity(dataset_id, "dataset")
    with deps.db.look() as tx:
        found = datasets.find_dataset(tx, caller.user_id, wanted)
    if found is None:
        raise missing("dataset", dataset_id)
    return found


def version(
    request: Request, deps: Room, caller: Caller, dataset_id: str, version_id: str
) -> Version:
    """The version of the path, of the dataset of the path."""
    wanted = identity(version_id, "version")
    parent = identity(dataset_id, "dataset")
    with deps.db.look() as tx:
        found = versions.find_version(tx, caller.user_id, parent, wanted)
    if found is None:
        raise missing("version", version_id)
    _permit(request, found.role)
    return found


def version_alone(request: Request, deps: Room, caller: Caller, version_id: str) -> Version:
    """The version of a path that names no dataset."""
    wanted = identity(version_id, "version")
    with deps.db.look() as tx:
        found = versions.find_version(tx, caller.user_id, None, wanted)
    if found is None:
        raise missing("version", version_id)
    _permit(request, found.role)
    return found


DatasetPath = Annotated[Dataset, Depends(dataset)]
OwnDatasetPath = Annotated[Dataset, Depends(own_dataset)]
VersionPath = Annotated[Version, Depends(version)]
LoneVersionPath = Annotated[Version, Depends(version_alone)]


def split(deps: Room, parent: VersionPath, split_id: str) -> Split:
    """The split of the path, of the version of the path."""
    wanted = identity(split_id, "split")
    with deps.db.look() as tx:
        found = datasets.find_split(tx, parent.id, wanted)
    if found is None:
        raise missing("split", split_id)
    return found


def item(deps: Room, parent: VersionPath, item_id: str) -> Item:
    """The item of the path, of the version of the path."""
    wanted = identity(item_id, "item")
    with deps.db.look() as tx:
        found = item_pages.find_item(tx, parent.id, wanted)
    if found is None:
        raise missing("item", item_id)
    return found


SplitPath = Annotated[Split, Depends(split)]
ItemPath = Annotated[Item, Depends(item)]
