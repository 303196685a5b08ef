"""``jobs reapply``: map kept answers again with the settings of today."""

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

import typer

from ppworker.cli import operations, references, render
from ppworker.cli.catalogue import DatasetRef
from ppworker.cli.session import Call, Session, as_uuid
from ppworker.cli.session import session as open_session
from ppworker.domain.job import Status
from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import Invalid, NotFound
from ppworker.pipeline.control import reapply as pipeline
from ppworker.pipeline.control import reapply_preview
from ppworker.store import datasets, items
from ppworker.store.operations import Operation
from ppworker.store.results import Scope

_FAILED = 1


def reapply(
    call: Call,
    *,
    dataset: DatasetRef,
    processor: Annotated[
        str,
        typer.Option("--processor", metavar="NAME", help="Name or id.", show_default=False),
    ],
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="SPLIT", help="Only items of this split: name or id."),
    ] = None,
    item: Annotated[
        str | None, typer.Option("--item", metavar="ITEM", help="Only this item: its id.")
    ] = None,
    successors: Annotated[
        bool,
        typer.Option(
            "--successors", help="Run later post-processors again that read a changed text."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would change, and change nothing.")
    ] = False,
) -> None:
    """Map kept answers again with the settings of today, without asking the model."""
    item_id = None if item is None else as_uuid(item, "--item")
    with open_session(call) as s:
        found, scope = _scope(s, dataset, processor, split, item_id)
        if dry_run:
            _print(call, _preview(s, scope), None)
            return
        id_ = pipeline.begin(s.deps, found, scope, s.user_id, successors=successors)
        done = operations.follow(s, id_)
    _print(call, done.counts, done)
    if done.status == Status.FAILED:
        raise typer.Exit(_FAILED)


def _scope(
    s: Session, dataset: str, processor: str, split: str | None, item_id: UUID | None
) -> tuple[PostProcessor, Scope]:
    with s.deps.db.begin() as tx:
        parent = datasets.get_dataset(tx, s.user_id, dataset)
        found = references.get_processor(tx, s.user_id, processor, dataset_id=parent.id)
        if found.dataset_id != parent.id:
            raise Invalid(f"'{found.name}' belongs to another dataset", field="--processor")
        split_id = None
        if split is not None:
            there = {
                each.name: each for each in datasets.list_splits(tx, s.user_id, parent.version_id)
            }
            within = there.get(split) or datasets.get_split(tx, s.user_id, split)
            if within.dataset_id != parent.id:
                raise Invalid(f"'{split}' belongs to another dataset", field="--split")
            split_id = within.id
        if item_id is not None and items.find_item(tx, s.user_id, item_id) is None:
            raise NotFound(
                f"no item {item_id}; `ppworker items list SPLIT` shows those there are",
                field="--item",
            )
    scope = Scope(
        post_processor_id=found.id, dataset_id=parent.id, split_id=split_id, item_id=item_id
    )
    return found, scope


def _preview(s: Session, scope: Scope) -> Mapping[str, int]:
    counts: Mapping[str, int] = {}
    with references.status_line() as tell:
        for seen, counts in reapply_preview.preview(s.deps, scope, s.user_id):  # noqa: B007  the last
            tell(f"{seen} items looked at")
    return counts


def _about(counts: Mapping[str, int], done: Operation | None) -> dict[str, Any]:
    def under(prefix: str) -> dict[str, int]:
        return {k.removeprefix(prefix): n for k, n in counts.items() if k.startswith(prefix)}

    words = ("added", "updated", "removed", "unchanged")
    return {
        "operation_id": done.id if done else None,
        "status": done.status if done else None,
        "reason": done.reason if done else "",
        "error": done.error if done else "",
        "dry_run": done is None,
        "answers": counts.get("answers", 0),
        "changed": counts.get("answers_changed", 0),
        "annotations": {word: counts.get(f"annotations_{word}", 0) for word in words},
        "texts": {word: counts.get(f"texts_{word}", 0) for word in ("written", "kept")},
        "skipped": under("skipped_"),
        "dropped": under("dropped_"),
        "jobs_planned": counts.get("jobs_planned", 0),
    }


def _print(call: Call, counts: Mapping[str, int], done: Operation | None) -> None:
    about = _about(counts, done)
    if call.as_json:
        render.as_json(about)
        return
    would = "would change" if done is None else "changed"
    render.say(
        f"{about['changed']} of {about['answers']} kept answers {would} something",
        f"annotations  {render.cell(about['annotations'])}",
        f"texts        {render.cell(about['texts'])}",
        f"left alone   {render.cell(about['skipped']) or 'none'}",
        f"dropped      {render.cell(about['dropped']) or 'none'}",
    )
    if about["jobs_planned"]:
        render.say(f"{about['jobs_planned']} jobs of later post-processors planned")
    if done is not None and done.status != Status.COMPLETED:
        render.say(f"operation {done.id} is {done.status}: {done.reason}: {done.error}")
