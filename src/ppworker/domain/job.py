"""Decides what becomes of a job: its states, its legal edges, and the rule for each outcome."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from ppworker.domain import retry


class Status(StrEnum):
    """Public status of a job; the finer reason stands beside it."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


LIVE = (Status.PENDING, Status.PROCESSING)
TERMINAL = (Status.COMPLETED, Status.FAILED)

EDGES: dict[tuple[Status | None, Status], tuple[str, ...]] = {
    (None, Status.PENDING): ("planned",),
    (Status.PENDING, Status.PROCESSING): ("claimed",),
    (Status.PROCESSING, Status.COMPLETED): ("finished",),
    (Status.PROCESSING, Status.PENDING): (
        "transient_error",
        "snoozed",
        "released",
        "rescued",
        "suspected",
        "input_changed",
    ),
    (Status.PROCESSING, Status.FAILED): ("exhausted", "permanent_error", "crashed", "cancelled"),
    (Status.PENDING, Status.FAILED): ("cancelled", "predecessor_failed"),
    (Status.FAILED, Status.PENDING): ("retried",),
}
"""Every legal edge and the causes that may take it; anything else is a bug."""

ENDS = {
    cause: to
    for (source, to), causes in EDGES.items()
    if source is Status.PROCESSING
    for cause in causes
}
"""What an attempt leaves its job as, by the cause of its end."""

MAX_CRASHES = 3
"""Deaths of its model that a job may cause before it is failed for good."""

MAX_SNOOZE_S = 3600.0
"""Longest wait that a model's Retry-After is granted, in seconds."""

MAX_SNOOZES = 1000
"""Waits that a model may ask a job for; each beyond it costs an attempt, so that none is asked for
ever."""

MAX_FREE_TIMEOUTS = 10
"""Waits after which a probe that timed out costs its attempt: it may be its input that hangs."""

LEASE_EXPIRED = "lease_expired"
"""Reason of a job whose worker died, or lost the database."""

DEADLINE = "deadline"
"""Reason of a job that was held for longer than its model may take."""

PUT_OFF = "put_off"
"""Reason of a job that was not asked, because the time of its batch was over."""

NO_INPUT = "no_input"
"""Reason of a text job that found no text on its item; revived with its predecessor."""

INVALID = "invalid"
"""Reason of a job whose row cannot be worked on, whoever wrote it."""

ITEM_DELETED = "item_deleted"
"""Reason of a job whose item was deleted while the model ran."""

PREDECESSOR_FAILED = "predecessor_failed"
"""Reason of a job stopped because an earlier one of its item failed; revived with it."""


_PROVES_NOTHING = frozenset(
    {"unavailable", "overloaded", "timeout", "auth", "file_missing", "lease_lost"}
)
"""Reasons after which nobody knows what the input does to a model: it was not in one, or did not
come back."""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """What the rule needs to know of a job whose attempt has just ended."""

    attempts: int
    """Attempts started, this one among them."""
    max_attempts: int
    crash_count: int = 0
    snoozes: int = 0
    """Waits that cost no attempt: asked for by the model, or after a probe that it failed."""
    rerun_requested: bool = False
    """Somebody planned onto the live job: its input is not what the model saw."""
    input_changed: bool = False
    """The item's input revision differs from the one recorded at the claim."""
    in_model: bool = False
    """Whether it was in a model of the worker's own process when that died or hung."""
    is_suspect: bool = False
    """Whether it ran in a process of its model's own, because a worker died with it before."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How one attempt ended, before anybody decided what follows.

    ``kind`` is ``answered``, ``error``, ``released`` (graceful stop, nothing ran to its end) or
    ``lease_expired`` (found by a sweep).
    """

    kind: Literal["answered", "error", "released", "lease_expired"]
    code: str = ""
    message: str = ""
    retryable: bool = False
    retry_after_s: float | None = None
    is_free: bool = False
    """Whether the attempt does not count: it tried out a model that had failed."""


@dataclass(slots=True, kw_only=True)
class Transition:
    """What to do about an outcome. SQL adds ``delay_s`` to the database's clock; a job that goes
    back to pending without a delay keeps its place in the queue."""

    to: Status
    cause: str
    """One of the causes of ``EDGES`` for this edge."""
    reason: str = ""
    """Stable word shown beside the status (an error code, for instance)."""
    error: str = ""
    delay_s: float = 0.0
    attempts: int = 0
    """Value to store: refunds and fresh budgets are already worked in."""
    crash_count: int = 0
    snoozes: int = 0
    keep_result: bool = False
    """Whether the answer is written together with this edge."""
    is_suspect: bool = False
    """Whether it must run in a process of its model's own, until it was proven harmless."""


def decide(attempt: Attempt, outcome: Outcome, *, jitter: float) -> Transition:
    """Tell what becomes of a processing job.

    Args:
        attempt: the job's counters as read under its lock.
        outcome: how the attempt ended.
        jitter: a number in [0, 1) that spreads retries.
    """
    if attempt.rerun_requested or attempt.input_changed:
        return Transition(to=Status.PENDING, cause="input_changed", reason="input_changed")
    if outcome.kind == "answered":
        return Transition(
            to=Status.COMPLETED,
            cause="finished",
            attempts=attempt.attempts,
            crash_count=attempt.crash_count,
            snoozes=attempt.snoozes,
            keep_result=True,
        )
    if outcome.kind == "released":
        return Transition(
            to=Status.PENDING,
            cause="released",
            reason="released",
            attempts=max(attempt.attempts - 1, 0),
            crash_count=attempt.crash_count,
            snoozes=attempt.snoozes,
            is_suspect=attempt.is_suspect,
        )
    if outcome.kind == "lease_expired":
        if attempt.in_model:
            return _suspected(attempt, outcome, jitter=jitter)
        transition = _again(attempt, outcome, cause="rescued", jitter=jitter)
        if outcome.code == LEASE_EXPIRED:  # its worker's end, not its own: it waited long enough
            transition = replace(transition, delay_s=0.0)
        return replace(transition, is_suspect=attempt.is_suspect)
    return _after_error(attempt, outcome, jitter=jitter)


def _suspected(attempt: Attempt, outcome: Outcome, *, jitter: float) -> Transition:
    """After the death, or the hang, of the worker in whose model the job was, alone or with others.

    It may be the cause or not, so it pays its attempt, but is failed for nothing: one that used up
    its last attempt gets it back, to prove itself in a process where nobody else can be blamed.
    """
    attempts = min(attempt.attempts, attempt.max_attempts - 1)
    return Transition(
        to=Status.PENDING,
        cause="suspected" if attempts < attempt.attempts else "rescued",
        reason=outcome.code,
        error=outcome.message,
        delay_s=retry.backoff_s(attempts, jitter=jitter),
        attempts=attempts,
        crash_count=attempt.crash_count,
        snoozes=attempt.snoozes,
        is_suspect=True,
    )


def _after_error(attempt: Attempt, outcome: Outcome, *, jitter: float) -> Transition:
    if outcome.retry_after_s is not None:
        return _snooze(attempt, outcome, outcome.retry_after_s)
    most_free = MAX_FREE_TIMEOUTS if outcome.code == "timeout" else MAX_SNOOZES
    if outcome.is_free and attempt.snoozes < most_free:
        delay_s = retry.backoff_s(attempt.attempts, jitter=jitter)
        return _wait(attempt, outcome, delay_s, snoozes=attempt.snoozes + 1)
    if not outcome.retryable:
        return _fail(attempt, outcome, cause="permanent_error", crashes=attempt.crash_count)
    return _again(attempt, outcome, cause="transient_error", jitter=jitter)


def _snooze(attempt: Attempt, outcome: Outcome, retry_after_s: float) -> Transition:
    # In this order of arguments, a wait that is no number becomes 0.
    delay_s = min(max(0.0, retry_after_s), MAX_SNOOZE_S)
    snoozes = attempt.snoozes + 1
    if snoozes <= MAX_SNOOZES:
        return _wait(attempt, outcome, delay_s, snoozes=snoozes)
    if attempt.attempts >= attempt.max_attempts:
        return _fail(attempt, outcome, cause="exhausted", crashes=attempt.crash_count)
    transition = _wait(attempt, outcome, delay_s, snoozes=attempt.snoozes)
    return replace(transition, cause="transient_error", attempts=attempt.attempts)


def _wait(attempt: Attempt, outcome: Outcome, delay_s: float, *, snoozes: int) -> Transition:
    """Back to pending with the attempt refunded; a suspect has proved nothing by it. Let in among
    others again it could end a worker at each of its waits, which no budget bounds."""
    return Transition(
        to=Status.PENDING,
        cause="snoozed",
        reason=outcome.code or "snoozed",
        error=outcome.message,
        delay_s=delay_s,
        attempts=max(attempt.attempts - 1, 0),
        crash_count=attempt.crash_count,
        snoozes=snoozes,
        is_suspect=attempt.is_suspect,
    )


def _again(attempt: Attempt, outcome: Outcome, *, cause: str, jitter: float) -> Transition:
    crashes = attempt.crash_count + (outcome.code == "crash")
    if crashes >= MAX_CRASHES:
        return _fail(attempt, outcome, cause="crashed", crashes=crashes)
    if attempt.attempts >= attempt.max_attempts:
        return _fail(attempt, outcome, cause="exhausted", crashes=crashes)
    return Transition(
        to=Status.PENDING,
        cause=cause,
        reason=outcome.code or cause,
        error=outcome.message,
        delay_s=retry.backoff_s(attempt.attempts, jitter=jitter),
        attempts=attempt.attempts,
        crash_count=crashes,
        snoozes=attempt.snoozes,
        # After a crash so that its next death is no other batch's.
        is_suspect=outcome.code == "crash"
        or (attempt.is_suspect and outcome.code in _PROVES_NOTHING),
    )


def _fail(attempt: Attempt, outcome: Outcome, *, cause: str, crashes: int) -> Transition:
    return Transition(
        to=Status.FAILED,
        cause=cause,
        reason=outcome.code or cause,
        error=outcome.message,
        attempts=attempt.attempts,
        crash_count=crashes,
        snoozes=attempt.snoozes,
    )
