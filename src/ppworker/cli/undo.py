"""``processors undo``: take a post-processor's suggestions of a version away."""

from typing import Annotated
from uuid import UUID

import typer

from ppworker.cli import operations, references
from ppworker.cli.session import Call, session
from ppworker.errors import Invalid
from ppworker.pipeline.edits import undo as pipeline
from ppworker.store import datasets, versions
from ppworker.store.datasets import as_id
from ppworker.store.db import Tx


def undo(
    call: Call,
    *,
    processor: Annotated[
        str, typer.Argument(metavar="PROCESSOR", help="Id or DATASET/NAME.", show_default=False)
    ],
    version: Annotated[
        str | None,
        typer.Option("--version", metavar="V", help="Id or name; default the newest one."),
    ] = None,
) -> None:
    """Take away what a post-processor suggested in a version, but for what people looked at."""
    with session(call) as s:
        found = s.read(lambda tx: references.get_processor(tx, s.user_id, processor))
        version_id = s.read(lambda tx: _version(tx, s.user_id, found.dataset_id, version))
        id_ = pipeline.begin(s.deps, found.dataset_id, s.user_id, version_id, found.id)
        done = operations.follow(s, id_)
    operations.finish(call, done)


def _version(tx: Tx, user_id: UUID, dataset_id: UUID, wanted: str | None) -> UUID:
    if wanted is None:
        return datasets.get_dataset(tx, user_id, str(dataset_id)).version_id
    there = versions.list_versions(tx, [dataset_id])
    found = [each.id for each in there if wanted == each.name or as_id(wanted) == each.id]
    if len(found) != 1:
        several = "several versions" if found else "no version"
        raise Invalid(f"the dataset has {several} '{wanted}'; give an id", field="--version")
    return found[0]
