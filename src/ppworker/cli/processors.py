"""``processors``: create, list, try, pause, resume, backfill."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn
from uuid import UUID

import typer

from ppworker.cli import paths, references, render
from ppworker.cli.catalogue import DatasetRef, Name
from ppworker.cli.processor_change import change, mapping_of
from ppworker.cli.session import Call, Session, command, group, session
from ppworker.cli.undo import undo
from ppworker.domain.apply import Applied
from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import Invalid
from ppworker.pipeline.control import operate
from ppworker.pipeline.runs import circuits
from ppworker.pipeline.runs.trial import Trial, try_out
from ppworker.pipeline.setup import processors
from ppworker.runners.pool import RunnerPool
from ppworker.store import datasets, post_processors, retention

ProcessorRef = Annotated[
    str, typer.Argument(metavar="PROCESSOR", help="Id or DATASET/NAME.", show_default=False)
]
Runner = Annotated[str, typer.Option("--runner", metavar="R", help="Its name, or module:Class.")]
ModelType = Annotated[
    str | None, typer.Option("--type", metavar="T", help="Default: the runner's natural one.")
]
Order = Annotated[int, typer.Option("--order", metavar="N", help="Lower ones run first.")]
OutputTarget = Annotated[
    str | None, typer.Option("--target", metavar="T", help="text, annotations or both.")
]
Threshold = Annotated[
    float, typer.Option("--threshold", metavar="F", help="Least score of an annotation, 0 to 1.")
]
DropUnscored = Annotated[
    bool,
    typer.Option(
        "--drop-unscored", help="Drop predictions without a score, if there is a threshold."
    ),
]
NoNewLabels = Annotated[
    bool, typer.Option("--no-auto-create-labels", help="Use only labels that are there.")
]
MaxNewLabels = Annotated[
    int, typer.Option("--max-new-labels", metavar="N", help="Most labels it may create.")
]
Mapping = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="FROM=TO", help="Rename a label; FROM= drops. Repeatable."),
]
Prefix = Annotated[str, typer.Option("--prefix", metavar="P", help="Put before new labels.")]
FileTypes = Annotated[
    list[str] | None,
    typer.Option("--file-type", metavar="EXT", help="Only such files. Repeatable."),
]
OnlySplits = Annotated[
    list[str] | None,
    typer.Option("--split", metavar="NAME", help="Only items of this split. Repeatable."),
]
Config = Annotated[
    list[str] | None,
    typer.Option("--config", metavar="KEY=VALUE", help="Option of the runner. Repeatable."),
]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", help="Most jobs in a batch.")]
Cap = Annotated[
    int | None, typer.Option("--cap", metavar="N", help="Most batches at a time, over all workers.")
]
Timeout = Annotated[
    float, typer.Option("--timeout", metavar="S", help="Seconds a job may spend in the model.")
]
MaxAttempts = Annotated[
    int, typer.Option("--max-attempts", metavar="N", help="Runs of a job before it fails.")
]
OnFailure = Annotated[
    str,
    typer.Option("--on-failure", metavar="WORD", help="Later ones of the item: continue or stop."),
]


_processors = typer.Typer()


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add the group to the program."""
    group(root, _processors, name, summary)


@command(_processors, "create")
def create(
    call: Call,
    *,
    dataset: DatasetRef,
    name: Name,
    runner: Runner,
    model_type: ModelType = None,
    order: Order = 0,
    target: OutputTarget = None,
    threshold: Threshold = 0.0,
    drop_unscored: DropUnscored = False,
    no_auto_create_labels: NoNewLabels = False,
    max_new_labels: MaxNewLabels = 100,
    mapping: Mapping = None,
    prefix: Prefix = "",
    file_type: FileTypes = None,
    split: OnlySplits = None,
    config: Config = None,
    batch_size: BatchSize = 200,
    cap: Cap = None,
    timeout: Timeout = 300.0,
    max_attempts: MaxAttempts = 3,
    on_failure: OnFailure = "continue",
) -> None:
    """Create a post-processor; every option is checked before anything is written."""
    wanted = processors.Wanted(
        name=name,
        runner=runner,
        model_type=model_type,
        output_target=target,
        runner_config=_config(config or []),
        order=order,
        keep_unscored=not drop_unscored,
        auto_create_labels=not no_auto_create_labels,
        max_new_labels=max_new_labels,
        confidence_threshold=threshold,
        file_types=tuple(file_type or ()),
        splits=tuple(split or ()),
        label_mapping=mapping_of(mapping or []),
        label_prefix=prefix,
        batch_size=batch_size,
        concurrency_cap=cap,
        timeout_s=timeout,
        max_attempts=max_attempts,
        on_failure=on_failure,
    )
    with session(call) as s:
        parent = s.read(lambda tx: datasets.get_dataset(tx, s.user_id, dataset))
        made = processors.create(s.deps, s.user_id, parent, wanted)
    if call.as_json:
        render.as_json(made)
    else:
        kind = f"{made.runner} for {made.model_type}, writes {made.output_target}"
        render.say(f"post-processor {parent.name}/{made.name} ({made.id}): {kind}")


def _config(given: list[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise Invalid(f"'{pair}': write KEY=VALUE", field="runner_config")
        if key in found:
            raise Invalid("is given twice", field=f"runner_config.{key}")
        found[key] = _value(value)
    return found


def _value(text: str) -> object:
    """The text as JSON; as itself where it is none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


command(_processors, "change")(change)
command(_processors, "undo")(undo)


@command(_processors, "list")
def list_processors(call: Call, dataset: DatasetRef) -> None:
    """List the post-processors of a dataset in their order of execution."""
    with session(call) as s, s.deps.db.begin() as tx:
        parent = datasets.get_dataset(tx, s.user_id, dataset)
        found = post_processors.list_post_processors(tx, parent.id)
        pauses = post_processors.read_pauses(tx, [each.id for each in found])
        now = retention.read_clock(tx)
    rows = [
        render.plain(each)
        | {
            "paused": pauses[each.id].paused_by_operator,
            "circuit_until": render.plain(pauses[each.id].circuit_until),
            "circuit_reason": pauses[each.id].circuit_reason,
            "state": _state(each, pauses[each.id], now),
        }
        for each in found
    ]
    if call.as_json:
        render.as_json(rows)
        return
    columns = ("id", "order", "name", "runner", "model_type", "output_target",
               "confidence_threshold", "state")  # fmt: skip
    render.table(rows, columns, empty="no post-processors")


def _state(processor: PostProcessor, pauses: post_processors.Pauses, now: datetime) -> str:
    """Whether it runs; if several keep it from running, all of them."""
    found = [] if processor.enabled else ["disabled"]
    if pauses.paused_by_operator:
        found.append("paused")
    if pauses.circuit_until is not None:
        until = pauses.circuit_until if pauses.circuit_until > now else None
        found.append(render.failing(pauses.circuit_reason, until))
    return "; ".join(found) or "on"


@command(_processors, "check")
def check(
    call: Call,
    processor: ProcessorRef,
    path: Annotated[
        str | None,
        typer.Argument(metavar="[PATH]", help="Default: a short sample.", show_default=False),
    ] = None,
) -> None:
    """Try a post-processor on one file and print what it would do; writes nothing."""
    with session(call) as s:
        found = s.read(lambda tx: references.get_processor(tx, s.user_id, processor))
        file = None if path is None else _one_file(s, path)
        parent = s.read(lambda tx: datasets.get_dataset(tx, s.user_id, str(found.dataset_id)))
        models = RunnerPool()
        try:
            trial = try_out(s.deps, models, found, file, version_id=parent.version_id)
        finally:
            models.close()
    if call.as_json:
        render.as_json(_trial(trial))
    else:
        _print(trial)
    if trial.error is not None:
        raise typer.Exit(1)


def _one_file(s: Session, path: str) -> Path:
    found = paths.find([path], s.deps.settings)
    if Path(path).is_dir():
        raise Invalid(f"'{path}' is a folder; name one file", field="PATH")
    return found.files[0]


def _trial(trial: Trial) -> dict[str, Any]:
    applied, error = trial.applied, trial.error
    return {
        "input": trial.input,
        "media_type": trial.media_type,
        "seconds": round(trial.seconds, 4),
        "model_version": trial.model_version,
        "raw": trial.raw,
        "text": applied.text if applied else None,
        "predictions": [render.plain(draft) for draft in applied.drafts] if applied else [],
        "new_labels": list(applied.new_labels) if applied else [],
        "dropped": dict(trial.dropped or {}),
        "error": {"code": error.code, "message": str(error)} if error else None,
    }


def _print(trial: Trial) -> None:
    render.say(
        f"input    {trial.input} ({trial.media_type})",
        f"model    {trial.model_version or 'unknown'}",
        f"seconds  {trial.seconds:.2f}, loading the model included",
    )
    if trial.raw is not None:
        render.say("", "raw answer", render.shortened(render.compact(trial.raw), 2000))
    if trial.error is not None:
        render.say("", f"failed: {trial.error.code}: {trial.error}")
    if trial.applied is not None:
        _print_applied(trial.applied, dict(trial.dropped or {}))


def _print_applied(applied: Applied, dropped: dict[str, int]) -> None:
    if applied.text is not None:
        render.say("", "text", *(f"  {each}" for each in applied.text.splitlines()))
    render.say("", "annotations")
    rows = [render.plain(draft) for draft in applied.drafts]
    render.table(rows, ("label", "kind", "coordinates", "text", "score"))
    if applied.new_labels:
        render.say(f"new labels: {', '.join(applied.new_labels)}")
    render.say(f"dropped: {render.cell(dropped) or 'none'}")


@command(_processors, "pause")
def pause(call: Call, processor: ProcessorRef) -> None:
    """Let a post-processor's jobs wait; running batches end as they would."""
    _set_paused(call, processor, paused=True)


@command(_processors, "resume")
def resume(call: Call, processor: ProcessorRef) -> None:
    """Let a post-processor run again that somebody paused; a pause by failures stays."""
    _set_paused(call, processor, paused=False)


@command(_processors, "close-circuit")
def close_circuit(call: Call, processor: ProcessorRef) -> None:
    """End a post-processor's pause by failures at once; a pause by somebody stays."""
    with session(call) as s:
        found = s.read(lambda tx: references.get_processor(tx, s.user_id, processor))
        was_open = circuits.close(s.deps, found.id, found.name)
    if call.as_json:
        render.as_json({"id": found.id, "name": found.name, "was_open": was_open})
    elif was_open:
        render.say(f"{found.name} is no longer paused by failures")
    else:
        render.say(f"{found.name} was not paused by failures")


def _set_paused(call: Call, processor: str, *, paused: bool) -> None:
    with session(call) as s:
        found = s.read(lambda tx: references.get_processor(tx, s.user_id, processor))
        operate.set_paused(s.deps, found, paused=paused)
    if call.as_json:
        render.as_json({"id": found.id, "name": found.name, "paused": paused})
    else:
        render.say(f"{found.name} is {'paused' if paused else 'on'}")


@command(_processors, "backfill")
def backfill(
    call: Call,
    processor: ProcessorRef,
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="Name, DATASET/SPLIT or id; default all. Repeatable."),
    ] = None,
) -> None:
    """Plan jobs for items that were there before the post-processor."""
    planned = left_alone = 0
    with session(call) as s, references.status_line() as tell:
        found = s.read(lambda tx: references.get_processor(tx, s.user_id, processor))
        for done in operate.backfill(s.deps, found, _splits(s, found.dataset_id, split)):
            planned += done.changed
            left_alone += done.skipped
            tell(f"{planned} jobs planned")
    if call.as_json:
        render.as_json({"planned": planned, "skipped": left_alone})
    else:
        render.say(f"{planned} jobs planned, {left_alone} items do not match")


def _splits(s: Session, dataset_id: UUID, wanted: list[str] | None) -> list[datasets.Split]:
    with s.deps.db.begin() as tx:
        dataset = datasets.get_dataset(tx, s.user_id, str(dataset_id))
        there = datasets.list_splits(tx, s.user_id, dataset.version_id)
        if not wanted:
            return there
        named = {each.name: each for each in there}
        found = [named.get(each) or datasets.get_split(tx, s.user_id, each) for each in wanted]
    for each in found:
        if each.dataset_id != dataset_id:
            raise Invalid(
                f"'{each.dataset_name}/{each.name}' belongs to another dataset", field="splits"
            )
    return list({each.id: each for each in found}.values())
