"""``jobs``: look at them, retry, cancel, reapply, wait until they are over."""

import time
from collections.abc import Callable
from typing import Annotated
from uuid import UUID

import typer

from ppworker.cli import operations as operations_cli
from ppworker.cli import references, render
from ppworker.cli.items import After, Limit
from ppworker.cli.operations import Wait
from ppworker.cli.reapply import reapply
from ppworker.cli.session import Call, Session, as_uuid, command, group, page_size
from ppworker.cli.session import session as open_session
from ppworker.domain.job import Status
from ppworker.errors import Invalid, NotFound, RequestError
from ppworker.pipeline.control import operate, retry_jobs
from ppworker.store import datasets, job_operations, operations, overview, results

_POLL_S = 0.5
_LOOK_S = 5.0
"""Seconds between two looks at what is paused."""
_UNSEEN_S = 60.0
"""A worker not seen for so long is taken for dead when somebody waits for one."""

Jobs = Annotated[
    list[str] | None, typer.Argument(metavar="[JOB]...", help="Ids.", show_default=False)
]
DatasetFilter = Annotated[
    str | None,
    typer.Option("--dataset", metavar="DATASET", help="Only of this one.", show_default=False),
]
ProcessorFilter = Annotated[
    str | None,
    typer.Option(
        "--processor", metavar="PROCESSOR", help="Id or DATASET/NAME.", show_default=False
    ),
]

_jobs = typer.Typer()


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add the group to the program."""
    group(root, _jobs, name, summary)


@command(_jobs, "list")
def list_jobs(
    call: Call,
    *,
    dataset: Annotated[
        str | None, typer.Argument(metavar="[DATASET]", help="Name or id.", show_default=False)
    ] = None,
    status: Annotated[
        str | None, typer.Option("--status", help="pending, processing, completed or failed.")
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option("--reason", help="Why it waits or failed: crash, timeout and so on."),
    ] = None,
    processor: ProcessorFilter = None,
    item: Annotated[str | None, typer.Option("--item", metavar="ITEM", help="Id.")] = None,
    limit: Limit = 100,
    after: After = None,
) -> None:
    """List jobs by id."""
    limit = page_size(limit)
    if status is not None and status not in list(Status):
        raise Invalid(f"must be one of {', '.join(Status)}", field="status")
    item_id = None if item is None else as_uuid(item, "--item")
    behind = None if after is None else as_uuid(after, "--after")
    with open_session(call) as s:
        dataset_id, processor_id = _scope(s, dataset, processor)
        found = s.read(
            lambda tx: job_operations.list_jobs(
                tx,
                s.user_id,
                dataset_id=dataset_id,
                item_id=item_id,
                post_processor_id=processor_id,
                status=status,
                reason=reason,
                after=behind,
                limit=limit,
            )
        )
    rows = [render.plain(row) for row in found]
    if call.as_json:
        render.as_json(rows)
        return
    columns = ("id", "post_processor", "item", "status", "attempts", "seconds", "reason")
    render.table(rows, columns, empty="no jobs")


@command(_jobs, "show")
def show(
    call: Call, job: Annotated[str, typer.Argument(metavar="JOB", show_default=False)]
) -> None:
    """Show a job: its attempts, the model's raw answer, what was dropped of it."""
    job_id = as_uuid(job, "job")
    with open_session(call) as s, s.deps.db.begin() as tx:
        row = job_operations.find_job(tx, s.user_id, job_id)
        if row is None:
            raise NotFound(f"no job {job_id}; `ppworker jobs list` shows them", field="job")
        history = job_operations.list_attempts(tx, job_id)
        raw = results.find_raw(tx, job_id)
    about = render.plain(row) | {"history": [render.plain(each) for each in history], "raw": raw}
    if call.as_json:
        render.as_json(about)
        return
    facts = ("id", "post_processor", "item", "item_id", "status", "ready", "reason", "error",
             "attempts", "max_attempts", "run_at", "seconds", "dropped")  # fmt: skip
    render.say(*(f"{name:<15} {render.cell(about[name])}" for name in facts))
    render.say("", "ended attempts")
    columns = ("attempt", "cause", "reason", "seconds", "worker_id", "error")
    render.table(about["history"], columns)
    render.say("", "raw answer", render.shortened(render.compact(raw), 2000))


@command(_jobs, "retry")
def retry(
    call: Call,
    *,
    job: Jobs = None,
    failed: Annotated[bool, typer.Option("--failed", help="All that failed.")] = False,
    dataset: DatasetFilter = None,
    processor: ProcessorFilter = None,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Only those that failed for this reason.")
    ] = None,
    successors: Annotated[
        bool, typer.Option("--successors", help="Run later post-processors of the item again.")
    ] = False,
    wait: Wait = False,
) -> None:
    """Retry failed jobs with a fresh budget of attempts.

    More than a thousand are restarted bit by bit, behind live work, by an operation.
    """
    if bool(job) == failed:
        raise Invalid("name jobs by their ids, or give --failed", field="JOB")
    if not failed and (dataset or processor or reason):
        raise Invalid("filters only go with --failed", field="JOB")
    ids = [as_uuid(each, "JOB") for each in job or []]
    with open_session(call) as s:
        if ids:
            _each(
                call, ids, "retried",
                lambda id_: operate.retry(s.deps, s.user_id, id_, successors=successors),
            )  # fmt: skip
            return
        dataset_id, processor_id = _scope(s, dataset, processor)
        wanted = retry_jobs.Wanted(
            dataset_id=dataset_id,
            post_processor_id=processor_id,
            reason=reason,
            successors=successors,
        )
        done = retry_jobs.begin(s.deps, s.user_id, wanted)
        if isinstance(done, UUID):
            _tell_begun(call, s, done, wait=wait)
            return
    if call.as_json:
        render.as_json({"retried": done.changed, "skipped": done.skipped, "operation": None})
    else:
        render.say(f"{done.changed} jobs retried, {done.skipped} left alone")


def _tell_begun(call: Call, s: Session, id_: UUID, *, wait: bool) -> None:
    """Say what restarts many jobs, at its end if somebody waits for it."""
    if wait:
        operations_cli.finish(call, operations_cli.follow(s, id_))
        return
    begun = s.read(lambda tx: operations.find_operation(tx, s.user_id, id_))
    if call.as_json:
        about = None if begun is None else operations_cli.about(begun)
        render.as_json({"retried": 0, "skipped": 0, "operation": about})
    else:
        total = 0 if begun is None else begun.total
        render.say(
            f"workers restart up to {total} jobs bit by bit, behind live work; "
            f"`ppworker operations show {id_}` says how far they are"
        )


@command(_jobs, "cancel")
def cancel(
    call: Call, job: Annotated[list[str], typer.Argument(metavar="JOB...", show_default=False)]
) -> None:
    """Cancel jobs that are not over."""
    ids = [as_uuid(each, "JOB") for each in job]
    with open_session(call) as s:
        _each(call, ids, "cancelled", lambda id_: operate.cancel(s.deps, s.user_id, id_))


def _each(call: Call, ids: list[UUID], verb: str, act: Callable[[UUID], None]) -> None:
    """Do it to every job; a refused one does not stop the others, and is the exit code."""
    done: list[str] = []
    refused: list[RequestError] = []
    for id_ in dict.fromkeys(ids):
        try:
            act(id_)
        except RequestError as error:
            refused.append(error)
        else:
            done.append(str(id_))
    if call.as_json:
        render.as_json({verb: done, "refused": [str(error) for error in refused]})
    elif done:
        render.say(f"{len(done)} jobs {verb}")
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise Invalid(f"{refused[0]}{more}", field=refused[0].field)


command(_jobs, "reapply")(reapply)


@command(_jobs, "wait")
def wait(
    call: Call,
    dataset: DatasetFilter = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="S", help="Give up after so many seconds, exit 1."),
    ] = None,
) -> None:
    """Wait until no job is pending or processing; exit 0 however they ended."""
    if timeout is not None and not timeout >= 0:
        raise Invalid("must be a number of seconds from 0", field="--timeout")
    with open_session(call) as s:
        dataset_id, _ = _scope(s, dataset, None)
        started = time.monotonic()
        live = _wait(s, dataset_id, None if timeout is None else started + timeout)
        failed = s.read(lambda tx: overview.count_failed(tx, s.user_id, dataset_id))
    is_over = not live.pending + live.processing
    about = {
        "is_over": is_over,
        "pending": live.pending,
        "processing": live.processing,
        "failed": failed.rows,
        "waited_s": round(time.monotonic() - started, 3),
    }
    if call.as_json:
        render.as_json(about)
    elif is_over:
        render.say(f"all jobs are over, {failed.rows} of them failed")
    else:
        render.say(f"time is up: {live.pending} pending, {live.processing} processing")
    if not is_over:
        raise typer.Exit(1)


def _wait(s: Session, dataset_id: UUID | None, until: float | None) -> overview.Live:
    with references.status_line() as tell:
        is_first = True
        told: set[str] = set()
        look_at = 0.0
        while True:
            live: overview.Live = s.read(lambda tx: overview.count_live(tx, s.user_id, dataset_id))
            now = time.monotonic()
            if not live.pending + live.processing or (until is not None and now >= until):
                return live
            if is_first and not any(
                each.seen_s < _UNSEEN_S for each in s.read(overview.read_workers)
            ):
                typer.echo("no worker runs; start one by `ppworker up`", err=True)
            is_first = False
            if now >= look_at:
                look_at = now + _LOOK_S
                told = _tell_held(s, dataset_id, told)
            tell(f"{live.pending} pending, {live.processing} processing")
            time.sleep(_POLL_S if until is None else max(0.0, min(_POLL_S, until - now)))


def _tell_held(s: Session, dataset_id: UUID | None, told: set[str]) -> set[str]:
    """Say of what is waited for why it does not run, each thing once while it holds."""
    held: list[overview.Held] = s.read(lambda tx: overview.find_held(tx, s.user_id, dataset_id))
    lines = {_why_held(each) for each in held}
    for line in sorted(lines - told):
        typer.echo(render.line(line), err=True)
    return lines


def _why_held(held: overview.Held) -> str:
    name = f"{held.dataset}/{held.name}"
    if not held.enabled:
        return f"{name} is disabled: its jobs wait until somebody enables it"
    if held.paused_by_operator:
        return f"{name} is paused: its jobs wait; `ppworker processors resume {name}` lets it run"
    state = render.failing(held.circuit_reason, held.circuit_until)
    return (
        f"{name} is {state}: then one job is tried; "
        f"`ppworker processors close-circuit {name}` lets all run now"
    )


def _scope(
    s: Session, dataset: str | None, processor: str | None
) -> tuple[UUID | None, UUID | None]:
    """Ids of a dataset and a post-processor to filter by."""
    with s.deps.db.begin() as tx:
        dataset_id = None
        if dataset is not None:
            dataset_id = datasets.get_dataset(tx, s.user_id, dataset).id
        if processor is None:
            return dataset_id, None
        found = references.get_processor(tx, s.user_id, processor, dataset_id=dataset_id)
        return dataset_id, found.id
