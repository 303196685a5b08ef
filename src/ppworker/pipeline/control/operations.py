"""Runs long work in resumable steps: leased, fenced, swept, and given back on request.

A kind of operation is a `Step`. It is called for each chunk twice: outside any transaction, to
prepare (read files, create labels), and then inside the fenced transaction, to write. The chunk's
writes, the operation's place, its counts and the renewal of its lease commit together, so whatever
happens between two chunks costs nothing, and whatever happens within one leaves no trace.
"""

import logging
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from ppworker import crash_points
from ppworker.domain.drop import add_counts
from ppworker.domain.events import OperationAdvanced, OperationMoved
from ppworker.domain.job import Attempt, Outcome, Status, decide
from ppworker.errors import (
    CommitUnknown,
    Conflict,
    NotFound,
    RequestError,
    StoreRefused,
    StoreUnavailable,
)
from ppworker.pipeline.control import keeping
from ppworker.pipeline.control.pace import Pace
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import patience
from ppworker.store import operations
from ppworker.store.db import Tx
from ppworker.store.operations import Operation

log = logging.getLogger(__name__)

MOST_LISTED = 20
"""Elements of a list in a result; examples, not all there is."""
_LOOK_S = 0.1
"""Seconds between two looks at an operation that somebody else runs."""


def _nothing() -> None:
    """Nothing to tell after a COMMIT."""


def _never() -> bool:
    return False


def _ignore(operation: Operation) -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What one transaction of an operation did."""

    cursor: int
    """Where the next chunk begins."""
    done: int
    """Units of work of this chunk alone."""
    counts: Mapping[str, int]
    """What became of them, by word; added to the operation's."""
    is_last: bool
    result: Mapping[str, Any] = field(default_factory=dict)
    """What it made and what it left out; merged into the operation's by `merged`."""
    after: Callable[[], None] = _nothing
    """Called once after the COMMIT: events and hints. Must not raise."""
    rest_s: float = 0.0
    """Seconds for which the operation waits before its next chunk, on nobody's lease."""


Write = Callable[[Tx], Chunk]
"""Writes a chunk in the transaction it is given, which holds the operation's row as its first lock.
It may be called again in a new transaction (deadlock, lost connection), so it must not change what
it closes over, and must decide everything on what it reads itself."""

Step = Callable[[Deps, Operation], Write]
"""Prepares the next chunk of an operation: at most ``operation.chunk`` units behind its cursor.

A `ppworker.errors.RequestError` from it (a split is gone, say) ends the operation as failed at
once. Any other error is tried again with back-off and smaller chunks until ``max_attempts``.
"""


class _LeaseLostError(Exception):
    """Somebody else has the operation by now; nothing of the chunk was written."""


def run(
    deps: Deps,
    steps: Mapping[str, Step],
    *,
    operation_id: UUID | None = None,
    until: Callable[[], bool] = _never,
    watch: Callable[[Operation], None] = _ignore,
) -> Operation | None:
    """Claim an operation that is due and run its chunks until it ends or ``until`` is true.

    Args:
        deps: the collaborators.
        steps: kinds of operation that may be claimed.
        operation_id: only this one.
        until: asked before each chunk; once it is true the operation goes back to pending, due
            at once, and the claim does not count as an attempt.
        watch: told of the operation after each chunk, for progress that people see.

    Returns:
        The operation's last state (over; or pending, because of ``until`` or to be tried again
        later), None when nothing was claimed.

    Raises:
        StoreUnavailable: PostgreSQL stayed away; the lease will expire and be claimed again.
    """
    with deps.db.look() as tx:
        if not operations.is_any_due(tx, steps) or until():
            return None

    def work(tx: Tx) -> tuple[list[Operation], Operation | None]:
        ended = operations.fail_exhausted(tx, steps)
        claimed = operations.claim(
            tx,
            steps,
            worker_id=deps.worker_id,
            lease_s=deps.settings.lease_s,
            operation_id=operation_id,
        )
        return ended, claimed

    ended, claimed = deps.db.transact(work)
    deps.emit([_moved(each, Status.PROCESSING, "exhausted") for each in ended])
    if claimed is None:
        return next((each for each in ended if each.id == operation_id), None)
    deps.emit([_moved(claimed, Status.PENDING, "claimed")])
    return _run_claimed(deps, steps[claimed.kind], claimed, until, watch)


def follow(
    deps: Deps,
    steps: Mapping[str, Step],
    user_id: UUID,
    operation_id: UUID,
    *,
    until: Callable[[], bool] = _never,
    watch: Callable[[Operation], None] = _ignore,
) -> Operation:
    """Run an operation, or wait for whoever runs it, until it is over or ``until`` is true.

    Args:
        deps: the collaborators.
        steps: kinds of operation there are.
        user_id: whose operation it must be.
        operation_id: the operation.
        until: ends the wait.
        watch: told of the operation now and then, for progress that people see.

    Raises:
        NotFound: there is no such operation, or it is somebody else's.
        StoreUnavailable: as ``run``.
    """
    while True:
        with deps.db.look() as tx:
            found = operations.find_operation(tx, user_id, operation_id)
        if found is None:
            raise _no_operation(operation_id)
        watch(found)
        if found.is_over or until():
            return found
        if run(deps, steps, operation_id=operation_id, until=until, watch=watch) is None:
            time.sleep(_LOOK_S)


def retry(deps: Deps, user_id: UUID, operation_id: UUID) -> Operation:
    """Let a failed operation go on where it stopped, with a fresh budget of attempts.

    Raises:
        NotFound: there is no such operation, or it is somebody else's.
        Conflict: it has not failed.
    """
    with deps.db.begin() as tx:
        retried = operations.retry_failed(tx, user_id, operation_id)
        found = operations.find_operation(tx, user_id, operation_id)
    if found is None:
        raise _no_operation(operation_id)
    if retried is None:
        raise Conflict(
            f"operation {operation_id} is {found.status}; only failed ones can be retried",
            field="operation",
        )
    deps.emit([_moved(retried, Status.FAILED, "retried")])
    return retried


def merged(result: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """A result with what another chunk adds: numbers add up, lists go on as far as `MOST_LISTED`,
    objects are merged, anything else is replaced."""
    made = dict(result)
    for name, value in more.items():
        old = made.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            made[name] = merged(old, value)
        elif isinstance(value, list) and isinstance(old, list):
            made[name] = [*old, *value][:MOST_LISTED]
        elif type(value) is int and type(old) is int:
            made[name] = old + value
        else:
            made[name] = value
    return made


def _run_claimed(
    deps: Deps,
    step: Step,
    operation: Operation,
    until: Callable[[], bool],
    watch: Callable[[Operation], None],
) -> Operation:
    pace = Pace(operation.attempts, deps.settings.lease_s)
    try:
        while not until():
            held = replace(operation, chunk=pace.units)
            started = time.monotonic()
            operation, chunk = _chunk_patiently(deps, step, held, until)
            seconds = time.monotonic() - started
            pace.learn(chunk.done, seconds)
            crash_points.reach("after_operation_step", operation.kind)
            chunk.after()
            deps.emit([_advanced(operation, chunk, seconds)])
            watch(operation)
            if operation.is_over:
                deps.emit([_moved(operation, Status.PROCESSING, "finished")])
            if operation.status != Status.PROCESSING:
                return operation
    except _LeaseLostError:
        log.warning("operation %s: its lease is lost; a chunk was dropped", operation.id)
        return _current(deps, operation)
    except StoreUnavailable:
        # Often it is there again at once: then nobody need wait until the lease has run out.
        with suppress(StoreUnavailable):
            _end_attempt(deps, operation, Outcome(kind="released"))
        raise
    except Exception as error:  # noqa: BLE001  a bug of a step must not end who runs it
        return _end_attempt(deps, operation, _outcome(operation, error))
    except BaseException:  # an interrupted command
        with suppress(StoreUnavailable):
            _end_attempt(deps, operation, Outcome(kind="released"))
        raise
    return _end_attempt(deps, operation, Outcome(kind="released"))


def _chunk_patiently(
    deps: Deps, step: Step, operation: Operation, until: Callable[[], bool]
) -> tuple[Operation, Chunk]:
    """Prepare and write one chunk, again while PostgreSQL is away, once whatever happens."""
    last: list[tuple[Operation, Chunk]] = []

    def attempt(*, in_doubt: bool) -> tuple[Operation, Chunk]:
        if in_doubt and (written := _find_written(deps, operation, last)):
            return written
        with keeping.kept(deps, operation):
            write = step(deps, operation)

        def work(tx: Tx) -> tuple[Operation, Chunk]:
            held = operations.hold(tx, operation.id, operation.lease_token)
            if held is None:
                raise _LeaseLostError
            chunk = write(tx)
            state = operations.advance(
                tx,
                held,
                cursor=chunk.cursor,
                done=held.done + chunk.done,
                counts=add_counts(held.counts, chunk.counts),
                result=merged(held.result, chunk.result),
                is_last=chunk.is_last,
                lease_s=deps.settings.lease_s,
                rest_s=chunk.rest_s,
            )
            last[:] = [(state, chunk)]
            crash_points.reach("in_operation_step", operation.kind)
            return state, chunk

        return deps.db.transact(work)

    return patience.until_it_answers(attempt, give_up=until)


def _find_written(
    deps: Deps, before: Operation, last: list[tuple[Operation, Chunk]]
) -> tuple[Operation, Chunk] | None:
    """Decide a COMMIT whose answer was lost, by reading the row again under its lock."""

    def read(tx: Tx) -> Operation | None:
        return operations.lock_operation(tx, before.id)

    found = deps.db.transact(read)
    if found is None or found.lease_token != before.lease_token:
        raise _LeaseLostError
    for state, chunk in last:
        said = (state.cursor, state.done, state.counts, state.result, state.status)
        there = (found.cursor, found.done, found.counts, found.result, found.status)
        if said == there:
            return found, chunk
    return None


def _outcome(operation: Operation, error: Exception) -> Outcome:
    """What the rule for jobs needs to know of a chunk that went wrong."""
    if isinstance(error, RequestError):
        code = {NotFound: "not_found", Conflict: "conflict"}.get(type(error), "invalid")
        return Outcome(kind="error", code=code, message=str(error))
    if isinstance(error, StoreRefused):
        return Outcome(kind="error", code="refused_data", message=str(error), retryable=True)
    log.error("operation %s: a chunk failed", operation.id, exc_info=error)
    # Its user reads it, whom no path of this machine concerns.
    said = error.strerror if isinstance(error, OSError) and error.strerror else error
    message = f"{type(error).__name__}: {said}"[:500]
    return Outcome(kind="error", code="step_failed", message=message, retryable=True)


def _end_attempt(deps: Deps, operation: Operation, outcome: Outcome) -> Operation:
    """Give an operation back, or end it as failed, under its fence."""
    attempt = Attempt(attempts=operation.attempts, max_attempts=operation.max_attempts)
    transition = decide(attempt, outcome, jitter=random.random())  # noqa: S311  only spreads

    def work(tx: Tx) -> Operation | None:
        held = operations.hold(tx, operation.id, operation.lease_token)
        return None if held is None else operations.move(tx, held, transition)

    try:
        moved = deps.db.transact(work)
    except CommitUnknown:
        return _current(deps, operation)
    if moved is None:
        return _current(deps, operation)
    deps.emit([_moved(moved, Status.PROCESSING, transition.cause)])
    return moved


def _current(deps: Deps, operation: Operation) -> Operation:
    with deps.db.look() as tx:
        found = operations.find_operation(tx, operation.user_id, operation.id)
    return found or operation


def _advanced(operation: Operation, chunk: Chunk, seconds: float) -> OperationAdvanced:
    return OperationAdvanced(
        operation_id=operation.id,
        kind=operation.kind,
        done=chunk.done,
        counts=chunk.counts,
        seconds=seconds,
    )


def _moved(operation: Operation, source: Status, cause: str) -> OperationMoved:
    return OperationMoved(
        operation_id=operation.id,
        kind=operation.kind,
        source=source,
        to=Status(operation.status),
        cause=cause,
        reason=operation.reason,
        error=operation.error,
        done=operation.done,
    )


def _no_operation(operation_id: UUID) -> NotFound:
    return NotFound(
        f"no operation {operation_id}; `ppworker operations list` shows those there are",
        field="operation",
    )
