"""What the path names, checked as a whole: each part belongs to the one before it, and the first to
whoever asks. What is somebody else's is not there."""

from typing import Annotated
from uuid import UUID

from fastapi import Depends

from ppworker.api.auth import Caller, Room
from ppworker.errors import NotFound
from ppworker.store import datasets, item_pages, versions
from ppworker.store.datasets import Dataset, Split, as_id
from ppworker.store.item_pages import Item
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


def missing(what: str, given: object) -> NotFound:
    """The error of a part of the path that is not there."""
    return NotFound(f"there is no {what} '{given}' here", field=what)


def dataset(deps: Room, caller: Caller, dataset_id: str) -> Dataset:
    """The dataset of the path."""
    wanted = identity(dataset_id, "dataset")
    with deps.db.look() as tx:
        found = datasets.find_dataset(tx, caller.user_id, wanted)
    if found is None:
        raise missing("dataset", dataset_id)
    return found


def version(deps: Room, caller: Caller, dataset_id: str, version_id: str) -> Version:
    """The version of the path, of the dataset of the path."""
    wanted = identity(version_id, "version")
    parent = identity(dataset_id, "dataset")
    with deps.db.look() as tx:
        found = versions.find_version(tx, caller.user_id, parent, wanted)
    if found is None:
        raise missing("version", version_id)
    return found


DatasetPath = Annotated[Dataset, Depends(dataset)]
VersionPath = Annotated[Version, Depends(version)]


def split(deps: Room, caller: Caller, parent: VersionPath, split_id: str) -> Split:
    """The split of the path, of the version of the path."""
    wanted = identity(split_id, "split")
    with deps.db.look() as tx:
        found = datasets.find_split(tx, caller.user_id, parent.id, wanted)
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
