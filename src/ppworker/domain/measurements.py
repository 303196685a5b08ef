"""Facts for counters alone; a log of them would say nothing that other events do not."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationsWritten:
    """A transaction changed annotations."""

    post_processor: str
    """Its name; empty for predictions that were made elsewhere."""
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    deduplicated: int = 0
    """Predictions that stood there already, so that nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsDeduplicated:
    """Jobs were asked for that live already, so that none were planned."""

    post_processor: str
    jobs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimTried:
    """A worker asked for jobs."""

    woken_by: str
    """What began the turn: wakeup or poll."""
    outcome: str
    """hit, empty or error."""
    jobs: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnded:
    """A post-processor's turn in a slot is over."""

    woken_by: str
    jobs: int
    """Jobs that were claimed in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAsked:
    """A model answered a batch, or failed to."""

    post_processor: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFinished:
    """The ends of a batch were committed."""

    post_processor: str
    seconds: float
    """Time of the transaction, waits for locks and repetitions among it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsPruned:
    """Jobs that were over for long were removed."""

    status: str
    """completed or failed."""
    jobs: int


Measurement = (
    AnnotationsWritten
    | JobsDeduplicated
    | ClaimTried
    | TurnEnded
    | ModelAsked
    | BatchFinished
    | JobsPruned
)
