"""Restarts many failed jobs as an operation: in chunks, spread over time, behind live work.

All at once they would take every slot. So each chunk restarts what is to become due within the
next seconds, and the pace follows how busy the workers are. A job that fails again is not
restarted a second time: only those count that had failed when it was asked.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from uuid import UUID

from ppworker.domain import restart_pace
from ppworker.domain.events import OperationMoved
from ppworker.domain.job import Status
from ppworker.domain.restart_pace import Pace
from ppworker.pipeline.control import operate
from ppworker.pipeline.control.operate import Operated
from ppworker.pipeline.control.operations import Chunk, Write
from ppworker.pipeline.deps import Deps
from ppworker.store import job_restarts, operations
from ppworker.store.db import Tx
from ppworker.store.ids import new_id
from ppworker.store.job_restarts import Walked
from ppworker.store.operations import Operation

KIND = "retry_jobs"

AT_ONCE = 1_000
"""Failed jobs up to which nobody waits for an operation."""
_WINDOW_S = 2.0
"""Seconds over which the jobs of one chunk become due."""
_MOST = 1_000
"""Jobs that one chunk restarts."""
_LOOKED_AT = 5_000
"""Failed jobs that one chunk looks at for those of a reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which failed jobs of a user; None does not limit."""

    dataset_id: UUID | None = None
    post_processor_id: UUID | None = None
    reason: str | None = None
    successors: bool = False
    """Also run later post-processors of the items again that answered."""


def begin(deps: Deps, user_id: UUID, wanted: Wanted) -> Operated | UUID:
    """Restart failed jobs: a few now, many by an operation that workers run; its id then."""
    with deps.db.look() as tx:
        owners = job_restarts.find_owners(
            tx,
            user_id,
            dataset_id=wanted.dataset_id,
            post_processor_id=wanted.post_processor_id,
        )
        extent = job_restarts.measure(tx, owners)
    if extent.last is None or extent.total <= AT_ONCE:
        return operate.retry_failed(
            deps,
            user_id,
            dataset_id=wanted.dataset_id,
            post_processor_id=wanted.post_processor_id,
            reason=wanted.reason,
            successors=wanted.successors,
        )
    id_ = new_id()
    arguments = {
        "post_processor_id": str(wanted.post_processor_id) if wanted.post_processor_id else None,
        "reason": wanted.reason,
        "successors": wanted.successors,
        "failed_by": extent.at.isoformat(),
        "last": str(extent.last),
    }
    with deps.db.begin() as tx:
        operations.insert_operation(
            tx,
            id_,
            user_id,
            kind=KIND,
            arguments=arguments,
            dataset_id=wanted.dataset_id,
            total=extent.total,
        )
    event = OperationMoved(
        operation_id=id_, kind=KIND, source=None, to=Status.PENDING, cause="planned"
    )
    deps.emit([event])
    return id_


def step(deps: Deps, operation: Operation) -> Write:
    """Prepare the next chunk, as `ppworker.pipeline.control.operations.Step` asks."""
    given, so_far = operation.arguments, operation.result
    processor_id = given["post_processor_id"]
    with deps.db.look() as tx:
        owners = job_restarts.find_owners(
            tx,
            operation.user_id,
            dataset_id=operation.dataset_id,
            post_processor_id=UUID(processor_id) if processor_id else None,
        )
        busy, slots, is_behind = job_restarts.read_load(tx, owners, late_s=_WINDOW_S / 2)
        before = Pace(*so_far.get("pace", ()))
        pace = restart_pace.learn(before, busy=busy, slots=slots, is_behind=is_behind)
        if is_behind and slots:
            return partial(_rest, operation, pace)
        most = _MOST if operation.attempts <= 1 else min(_MOST, operation.chunk)
        most = max(1, min(most, int(pace.per_second * _WINDOW_S)))
        walked = job_restarts.walk(
            tx,
            owners,
            failed_by=datetime.fromisoformat(given["failed_by"]),
            reason=given["reason"],
            after=UUID(str(so_far.get("after", UUID(int=0)))),
            last=UUID(given["last"]),
            most=most,
            limit=_LOOKED_AT if given["reason"] else most,
        )
    gap_s = 1 / pace.per_second if slots else 0.0
    return partial(_write, deps, operation, walked, pace, gap_s)


def _rest(operation: Operation, pace: Pace, _tx: Tx) -> Chunk:
    """Restart none: those restarted before are still waiting."""
    return Chunk(
        cursor=operation.cursor,
        done=0,
        counts={},
        is_last=False,
        result={"pace": _told(pace)},
        rest_s=_WINDOW_S,
    )


def _write(
    deps: Deps, operation: Operation, walked: Walked, pace: Pace, gap_s: float, tx: Tx
) -> Chunk:
    successors = bool(operation.arguments["successors"])
    done = operate.restart(tx, walked.wanted, successors=successors, gap_s=gap_s)

    def tell() -> None:
        deps.emit(done.events)
        deps.hint(done.woken)

    result: dict[str, object] = {"pace": _told(pace)}
    if walked.last is not None:
        result["after"] = str(walked.last)
    return Chunk(
        cursor=operation.cursor + walked.seen,
        done=walked.seen,
        counts={
            "retried": done.operated.changed,
            "skipped": walked.seen - done.operated.changed,
        },
        is_last=walked.last is None,
        result=result,
        after=tell,
        rest_s=0.0 if walked.last is None else gap_s * done.operated.changed,
    )


def _told(pace: Pace) -> tuple[float, float]:
    """Not a list, which results would append to."""
    return round(pace.per_second, 3), round(pace.busy, 3)
