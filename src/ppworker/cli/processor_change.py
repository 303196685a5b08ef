"""``processors change``: how answers become annotations from now on."""

from typing import Annotated, Any

import typer

from ppworker.cli import references, render
from ppworker.cli.session import Call, session
from ppworker.errors import Invalid
from ppworker.pipeline.setup import processor_changes
from ppworker.store import datasets


def change(
    call: Call,
    *,
    processor: Annotated[
        str, typer.Argument(metavar="PROCESSOR", help="Id or DATASET/NAME.", show_default=False)
    ],
    target: Annotated[
        str | None, typer.Option("--target", metavar="T", help="text, annotations or both.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", metavar="F", help="Least score, 0 to 1.")
    ] = None,
    keep_unscored: Annotated[
        bool | None,
        typer.Option("--keep-unscored/--drop-unscored", help="Predictions without a score."),
    ] = None,
    auto_create_labels: Annotated[
        bool | None,
        typer.Option(
            "--auto-create-labels/--no-auto-create-labels", help="May it make new labels?"
        ),
    ] = None,
    max_new_labels: Annotated[
        int | None,
        typer.Option("--max-new-labels", metavar="N", help="Most labels it may create."),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map", metavar="FROM=TO", help="The whole new mapping; FROM= drops. Repeatable."
        ),
    ] = None,
    no_map: Annotated[bool, typer.Option("--no-map", help="Map nothing.")] = False,
    prefix: Annotated[
        str | None, typer.Option("--prefix", metavar="P", help="Put before new labels.")
    ] = None,
) -> None:
    """Change how answers become annotations from now on; `jobs reapply` is for those before."""
    if mapping and no_map:
        raise Invalid("goes without --no-map", field="label_mapping")
    given: dict[str, Any] = {
        "output_target": target,
        "confidence_threshold": threshold,
        "keep_unscored": keep_unscored,
        "auto_create_labels": auto_create_labels,
        "max_new_labels": max_new_labels,
        "label_mapping": {} if no_map else mapping_of(mapping) if mapping else None,
        "label_prefix": prefix,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise Invalid("nothing to change; name an option", field="PROCESSOR")
    with session(call) as s:
        found = s.read(lambda tx: references.get_processor(tx, s.user_id, processor))
        parent = s.read(lambda tx: datasets.get_dataset(tx, s.user_id, str(found.dataset_id)))
        changed = processor_changes.change(s.deps, s.user_id, parent, found.id, changes)
    if call.as_json:
        render.as_json(changed)
        return
    render.say(
        f"{changed.name} is changed; `ppworker jobs reapply {parent.name} --processor "
        f"{changed.name}` applies it to the answers there are"
    )


def mapping_of(given: list[str]) -> dict[str, str | None]:
    """Labels by label, as ``--map`` writes them.

    Raises:
        Invalid: one is not written so, or maps a label for the second time.
    """
    found: dict[str, str | None] = {}
    for pair in given:
        source, equals, to = pair.partition("=")
        if not equals or not source.strip():
            raise Invalid(f"'{pair}': write FROM=TO, or FROM= to drop it", field="label_mapping")
        if source in found:
            raise Invalid(f"'{source}' is mapped twice", field="label_mapping")
        found[source] = to or None
    return found
