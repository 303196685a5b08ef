"""``operations``: look at long work, and let a failed one go on where it stopped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any
from uuid import UUID

import typer

from ppworker.cli import render
from ppworker.cli.items import After, Limit
from ppworker.cli.session import Call, Session, as_uuid, command, group, page_size, progress_shown
from ppworker.cli.session import session as open_session
from ppworker.domain.job import Status
from ppworker.errors import Invalid, NotFound
from ppworker.pipeline.control import operations as pipeline
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.store import operations
from ppworker.store.operations import Operation

_FAILED = 1
_FACTS = (
    "id", "kind", "status", "reason", "error", "total", "done", "attempts", "max_attempts",
    "created_at", "started_at", "completed_at",
)  # fmt: skip

OperationRef = Annotated[str, typer.Argument(metavar="OPERATION", show_default=False)]

Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Wait for the end, or leave it to the workers.")
]

_operations = typer.Typer()


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add the group to the program."""
    group(root, _operations, name, summary)


@command(_operations, "list")
def list_operations(
    call: Call,
    *,
    status: Annotated[
        str | None, typer.Option("--status", help="pending, processing, completed or failed.")
    ] = None,
    limit: Limit = 100,
    after: After = None,
) -> None:
    """List operations, the newest first."""
    limit = page_size(limit)
    if status is not None and status not in list(Status):
        raise Invalid(f"must be one of {', '.join(Status)}", field="status")
    behind = None if after is None else as_uuid(after, "--after")
    with open_session(call) as s:
        found = s.read(
            lambda tx: operations.list_operations(
                tx, s.user_id, limit=limit, status=status, after=behind
            )
        )
    rows = [about(each) for each in found]
    if call.as_json:
        render.as_json(rows)
        return
    columns = ("id", "kind", "status", "done", "total", "reason", "created_at")
    render.table(rows, columns, empty="no operations")


@command(_operations, "show")
def show(call: Call, operation: OperationRef) -> None:
    """Show an operation: how far it is, what it did, why it failed."""
    id_ = as_uuid(operation, "operation")
    with open_session(call) as s:
        found = s.read(lambda tx: operations.find_operation(tx, s.user_id, id_))
    if found is None:
        raise NotFound(
            f"no operation {id_}; `ppworker operations list` shows those there are",
            field="operation",
        )
    tell(call, found)


@command(_operations, "retry")
def retry(call: Call, operation: OperationRef) -> None:
    """Let a failed operation go on where it stopped, and wait for its end."""
    id_ = as_uuid(operation, "operation")
    with open_session(call) as s:
        pipeline.retry(s.deps, s.user_id, id_)
        done = follow(s, id_)
    finish(call, done)


def about(operation: Operation) -> dict[str, Any]:
    """What is shown of an operation."""
    names = (*_FACTS, "dataset_id", "arguments", "counts", "result")
    return {name: render.plain(getattr(operation, name)) for name in names}


def tell(call: Call, operation: Operation, **more: Any) -> None:
    """Print an operation, as JSON or for a person."""
    facts = about(operation)
    if call.as_json:
        render.as_json(facts | more)
        return
    shown = [name for name in _FACTS if facts[name] not in {None, ""}]
    render.say(*(f"{name:<13} {render.cell(facts[name])}" for name in shown))
    for word, count in sorted(operation.counts.items()):
        render.say(f"  {count:>9} {word.replace('_', ' ')}")
    for word, count in sorted(operation.result.get("skipped", {}).items()):
        render.say(f"  {count:>9} skipped: {word.replace('_', ' ')}")


def finish(call: Call, operation: Operation, **more: Any) -> None:
    """Print an operation that was waited for; exit 1 if it failed."""
    tell(call, operation, **more)
    if operation.status == Status.FAILED:
        raise typer.Exit(_FAILED)


def ended(s: Session, begun: Operation, *, wait: bool) -> Operation:
    """An operation at its end, or as it is now where nobody waits for it."""
    return follow(s, begun.id) if wait else begun


def follow(s: Session, operation_id: UUID) -> Operation:
    """Work on an operation, or wait for the worker that does, with a bar for people."""
    with _bar() as watch:
        return pipeline.follow(s.deps, STEPS, s.user_id, operation_id, watch=watch)


@contextmanager
def _bar() -> Iterator[Callable[[Operation], None]]:
    if not progress_shown():
        yield lambda operation: None  # noqa: ARG005  nobody watches
        return
    from rich.console import Console  # noqa: PLC0415  only people wait for it
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TimeRemainingColumn,
    )

    columns = ("done", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("done", total=None)
        yield lambda operation: bar.update(task, completed=operation.done, total=operation.total)
