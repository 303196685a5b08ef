"""Facts that happened, past tense, for logs and counters; emitted after their COMMIT."""

from dataclasses import dataclass
from uuid import UUID

from ppworker.domain.job import Status


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
    error: str = ""
    seconds: float | None = None
    """Time spent before this edge: waiting for a claim, running for an end."""


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


Event = JobMoved | LeaseRefused | LabelsCreated | StatsRebuilt
