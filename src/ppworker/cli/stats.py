"""``stats``: label stats of splits, their proof and their repair."""

from typing import Annotated, Any
from uuid import UUID

import typer

from ppworker.cli import render
from ppworker.cli.items import SplitRef
from ppworker.cli.session import Call, Session, command, group, session
from ppworker.pipeline.runs import refresh
from ppworker.store import datasets, labels, stats
from ppworker.store.db import Tx

_stats = typer.Typer()


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add the group to the program."""
    group(root, _stats, name, summary)


@command(_stats, "show")
def show(call: Call, split: SplitRef) -> None:
    """Show how many annotations and items each label has in a split."""
    with session(call) as s, s.deps.db.begin() as tx:
        found = datasets.get_split(tx, s.user_id, split)
        rows = stats.read_stats(tx, [found.id])
        names = {label.id: label.name for label in labels.list_labels(tx, found.version_id)}
    by_label: list[dict[str, Any]] = [
        {
            "label_id": str(row.label_id),
            "label": names.get(row.label_id, "") if row.label_id else "",
            "annotations": row.annotation_count,
            "items": row.item_count,
        }
        for row in rows
        if row.bucket == "label"
    ]
    by_label.sort(key=lambda row: (-row["annotations"], row["label"]))
    whole = {row.bucket: row for row in rows}
    about = {
        "split": f"{found.dataset_name}/{found.name}",
        "items": whole["total"].item_count if "total" in whole else 0,
        "unlabelled": whole["unlabelled"].item_count if "unlabelled" in whole else 0,
        "annotations": whole["total"].annotation_count if "total" in whole else 0,
        "labels": by_label,
    }
    if call.as_json:
        render.as_json(about)
        return
    counts = ("items", "unlabelled", "annotations")
    render.say(f"{about['split']}: " + ", ".join(f"{about[name]} {name}" for name in counts), "")
    render.table(by_label, ("label", "annotations", "items"), empty="no labels used yet")


@command(_stats, "verify")
def verify(
    call: Call,
    split: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SPLIT]...", help="Default: every split.", show_default=False),
    ] = None,
) -> None:
    """Recount label stats and compare; exit 1 when they differ."""
    with session(call) as s:
        wanted = _splits(s, split)
        # Split by split: a recount of all at once would hold one snapshot for as long as it takes.
        found = [row for id_ in wanted for row in refresh.verify(s.deps, [id_])]
    rows: list[dict[str, Any]] = [
        render.plain(row) | {"split": wanted[row.split_id]} for row in found
    ]
    if call.as_json:
        render.as_json({"splits": len(wanted), "differences": rows})
    elif rows:
        render.say("a recount differs; `ppworker stats rebuild SPLIT` sets it right", "")
        columns = ("split", "bucket", "label_id", "annotation_count", "item_count")
        render.table(rows, columns)
    else:
        render.say(f"{len(wanted)} splits equal their recount")
    if rows:
        raise typer.Exit(1)


@command(_stats, "rebuild")
def rebuild(call: Call, split: SplitRef) -> None:
    """Set a split's stats right by a recount; safe under load."""
    with session(call) as s:
        found = s.read(lambda tx: datasets.get_split(tx, s.user_id, split))
        changed = refresh.rebuild(s.deps, found.id)
    if call.as_json:
        render.as_json({"split": f"{found.dataset_name}/{found.name}", "changed": changed})
    else:
        render.say(f"{changed} rows changed")


def _splits(s: Session, references: list[str] | None) -> dict[UUID, str]:
    """Ids of the named splits, or of the whole database's, with what to call them."""

    def read(tx: Tx) -> dict[UUID, str]:
        if not references:
            return {id_: str(id_) for id_ in stats.list_split_ids(tx)}
        found = [datasets.get_split(tx, s.user_id, reference) for reference in references]
        return {each.id: f"{each.dataset_name}/{each.name}" for each in found}

    named: dict[UUID, str] = s.read(read)
    return named
