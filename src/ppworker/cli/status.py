"""``status``: what is due, what runs, what is done, what failed and why."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import typer

from ppworker.cli import render
from ppworker.cli.session import Call, command, session
from ppworker.domain.circuit import State
from ppworker.store import activity, overview
from ppworker.store.db import Tx

_PROCESSOR_COLUMNS = (
    "dataset", "name", "state", "pending", "processing", "completed", "failed", "reasons",
)  # fmt: skip
_WORKER_COLUMNS = ("id", "host", "pid", "version", "state", "slots", "leases", "seen_s")
_OPERATION_COLUMNS = ("id", "kind", "dataset", "status", "done", "total", "age_s")
_MOST_OPERATIONS = 50
"""Operations under way that are named; the others are counted."""


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add the command to the program."""
    command(root, name, summary=summary)(status)


def status(call: Call) -> None:
    """Show the state of all jobs, post-processors and workers."""
    with session(call) as s:
        about: dict[str, Any] = s.read(_read)
    if call.as_json:
        render.as_json(about)
    else:
        _print(about)


def _read(tx: Tx) -> dict[str, Any]:
    processors, failed_is_bound, completed_is_estimate = overview.read_processors(tx)
    deltas, oldest_delta_s = overview.count_deltas(tx)
    operations, operations_live = activity.read_operations(tx, limit=_MOST_OPERATIONS)
    letters = activity.count_dead_letters(tx)
    return {
        **totals(processors, failed_is_bound=failed_is_bound),
        "completed": sum(each.completed for each in processors),
        "completed_is_estimate": completed_is_estimate,
        "post_processors": [render.plain(each) | {"pending": each.pending} for each in processors],
        "workers": [
            render.plain(each) | {"state": each.state} for each in overview.read_workers(tx)
        ],
        "operations": [render.plain(each) for each in operations],
        "operations_live": operations_live,
        "dead_letters": letters.rows,
        "dead_letters_is_at_least": letters.is_bound,
        "stats": {
            "unfolded_deltas": deltas.rows,
            "is_at_least": deltas.is_bound,
            "oldest_s": oldest_delta_s,
        },
    }


def totals(
    processors: Sequence[overview.ProcessorStatus], *, failed_is_bound: bool
) -> dict[str, Any]:
    """The jobs of all post-processors together; what a pause holds is not due."""
    running = [each for each in processors if not each.is_held]
    ages = [each.oldest_due_s for each in running if each.oldest_due_s is not None]
    reasons: Counter[str] = Counter()
    for each in processors:
        reasons.update(each.reasons)
    return {
        "due": sum(each.due for each in running),
        "held": sum(each.due for each in processors if each.is_held),
        "in_flight": sum(each.processing for each in processors),
        "oldest_due_s": max(ages, default=None),
        "scheduled": sum(each.scheduled for each in processors),
        "waiting": sum(each.waiting for each in processors),
        "failed": sum(each.failed for each in processors),
        "failed_is_at_least": failed_is_bound,
        "reasons": dict(reasons.most_common()),
    }


def _print(about: dict[str, Any]) -> None:
    oldest = about["oldest_due_s"]
    age = "" if oldest is None else f", the oldest for {render.cell(oldest)} s"
    held = f", {about['held']} held by a pause" if about["held"] else ""
    completed = ("about " if about["completed_is_estimate"] else "") + str(about["completed"])
    failed = ("at least " if about["failed_is_at_least"] else "") + str(about["failed"])
    unfolded = about["stats"]["unfolded_deltas"]
    more = " or more" if about["stats"]["is_at_least"] else ""
    stale = about["stats"]["oldest_s"]
    behind = "" if stale is None else f", the oldest for {render.cell(stale)} s"
    leases = sum(each["leases"] for each in about["workers"])
    holders = sum(1 for each in about["workers"] if each["leases"])
    letters = ("at least " if about["dead_letters_is_at_least"] else "") + str(
        about["dead_letters"]
    )
    render.say(
        f"due        {about['due']}{age}{held}",
        f"in flight  {about['in_flight']}, {leases} leases of {holders} workers",
        f"waiting    {about['waiting']} for an earlier job, {about['scheduled']} for their time",
        f"completed  {completed}",
        f"failed     {failed}",
        f"stats      {unfolded}{more} deltas not folded yet{behind}",
        f"operations {about['operations_live']} not over yet",
        f"messages   {letters} could not be followed and wait as dead letters",
        "",
    )
    for row in about["post_processors"]:
        row["state"] = _state(row)
    render.table(about["post_processors"], _PROCESSOR_COLUMNS, empty="no post-processors")
    render.say("")
    render.table(about["workers"], _WORKER_COLUMNS, empty="no workers")
    if about["operations"]:
        render.say("")
        render.table(about["operations"], _OPERATION_COLUMNS)


def _state(row: dict[str, Any]) -> str:
    if not row["enabled"]:
        return "disabled"
    if row["paused_by_operator"]:
        return "paused"
    if row["circuit"] == State.CLOSED:
        return "on"
    is_open = row["circuit"] == State.OPEN
    until = datetime.fromisoformat(row["circuit_until"]) if is_open else None
    return render.failing(row["circuit_reason"], until)
