"""Facts that happened, past tense, for logs and counters; emitted after their COMMIT."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from ppworker.domain.job import Status
from ppworker.domain.measurements import Measurement


@dataclass(slots=True, kw_only=True)
class JobMoved:
    """A job took an edge."""

    job_id: UUID
    item_id: UUID
    post_processor: str
    """Name of the post-processor."""
    attempt: int
    lease_token: int
    source: Status | None
    to: Status
    cause: str
    """One of the causes that ``domain.job.EDGES`` allows for this edge."""
    reason: str = ""
    """Why it ended or waits; of a planned job what asked for it: upload, backfill, ..."""
    error: str = ""
    seconds: float | None = None
    """Time spent before this edge: waiting for a claim, running for an end."""
    age_s: float | None = None
    """Time since the job was planned, where it is over now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRefused:
    """A worker came with an answer whose lease it had lost; the answer was dropped."""

    job_id: UUID
    item_id: UUID
    post_processor: str
    attempt: int
    lease_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelsCreated:
    """A post-processor's answer created labels."""

    version_id: UUID
    post_processor: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsRebuilt:
    """A split's stats were found to differ from a recount and were set right."""

    split_id: UUID
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitOpened:
    """A post-processor pauses because of its model."""

    post_processor: str
    cause: str
    """failures, or asked: the model said how long to leave it alone."""
    reason: str
    """Of the last failure: unavailable, overloaded, timeout, auth."""
    failures: int
    """In a row."""
    trips: int
    """Times that failures made it pause since the last answer."""
    seconds: float
    """Length of the pause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitClosed:
    """A post-processor that paused because of its model goes on."""

    post_processor: str
    by: str
    """answer, or operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationMoved:
    """An operation began, ended, or went back to wait."""

    operation_id: UUID
    kind: str
    source: Status | None
    to: Status
    cause: str
    """As for jobs: planned, claimed, finished, released, transient_error, exhausted, ..."""
    reason: str = ""
    error: str = ""
    done: int = 0
    """Units of work done by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationAdvanced:
    """A chunk of an operation was committed."""

    operation_id: UUID
    kind: str
    done: int
    """Units of work of this chunk."""
    counts: Mapping[str, int]
    """What became of them, by word."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandFollowed:
    """A command from a message was followed."""

    command: str
    outcome: str
    """done, repeated (its key was known), or nothing (there was nothing to do)."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRefused:
    """A message could not be followed and was kept as a dead letter."""

    command: str
    """As written by a stranger; empty where nothing is written."""
    letter_id: UUID | None
    """None when it was kept before: the message came again."""
    field: str
    error: str


Event = (
    JobMoved
    | LeaseRefused
    | LabelsCreated
    | StatsRebuilt
    | CircuitOpened
    | CircuitClosed
    | OperationMoved
    | OperationAdvanced
    | CommandFollowed
    | CommandRefused
    | Measurement
)
