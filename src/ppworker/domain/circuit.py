"""Decides when a post-processor pauses because its model fails, and when it goes on.

Failures in a row open the circuit: nobody claims its jobs for a while. When the pause is over one
job runs as a probe. An answer closes the circuit; another failure opens it for twice as long. A
model that says how long it wants to be left alone is left alone for that time at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from ppworker.domain.job import MAX_SNOOZE_S, PUT_OFF, Outcome

MODEL_FAULTS = frozenset({"unavailable", "overloaded", "timeout", "auth"})
"""Reasons that speak of the model. Not among them is what one input may have done: it cannot be
read, its answer breaks the contract, the model's process died of it (three deaths end the job)."""

MIN_ASKED_S = 1.0
"""Shortest pause that a model can ask for: one that asks for none is not asked again at once."""
_MOST_COUNTED = 1_000_000


class State(StrEnum):
    """Whether jobs of a post-processor are claimed."""

    CLOSED = "closed"
    """As many as are due."""
    HALF_OPEN = "half_open"
    """One at a time: the probe."""
    OPEN = "open"
    """None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """How a post-processor's model has done of late."""

    failures: int = 0
    """Attempts in a row that failed for the model's sake."""
    trips: int = 0
    """Times that failures opened it since the last answer."""
    reason: str = ""
    """Why the last of them failed."""
    rests_s: float | None = None
    """Seconds until its pause is over, 0 or less when it is; None when there is none."""

    @property
    def state(self) -> State:
        """Whether jobs are claimed."""
        if self.rests_s is None:
            return State.CLOSED
        return State.OPEN if self.rests_s > 0 else State.HALF_OPEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When it opens, and for how long."""

    failures: int
    """So many failures in a row open it."""
    pause_s: float
    """Its first pause, in seconds."""
    max_pause_s: float
    """Its longest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a batch tells of the model."""

    answers: int = 0
    failures: int = 0
    """Attempts that failed for the model's sake, and those for which it left no time by that; those
    that it asked to wait are none."""
    reason: str = ""
    """Of the last failure."""
    asked_s: float | None = None
    """Longest time that the model asked to be left alone for, in seconds."""

    @property
    def is_trouble(self) -> bool:
        """Whether it must be noted, whatever was noted before."""
        return self.asked_s is not None or (self.failures > 0 and not self.answers)


def see(outcomes: Iterable[Outcome]) -> Seen:
    """What the ends of a batch tell of the model."""
    answers = failures = put_off = 0
    reason = ""
    asked_s: float | None = None
    for outcome in outcomes:
        if outcome.kind == "answered":
            answers += 1
        elif outcome.kind != "error":
            continue
        elif outcome.code == PUT_OFF:
            put_off += 1
        elif outcome.retry_after_s is not None:
            # In this order of arguments, a wait that is no number becomes the shortest.
            wait_s = min(max(MIN_ASKED_S, outcome.retry_after_s), MAX_SNOOZE_S)
            asked_s = max(asked_s or 0.0, wait_s)
            reason = outcome.code
        elif outcome.code in MODEL_FAULTS:
            failures += 1
            reason = outcome.code
    if failures:
        failures += put_off
    return Seen(answers=answers, failures=failures, reason=reason, asked_s=asked_s)


def judge(circuit: Circuit, seen: Seen, limits: Limits, *, jitter: float) -> Circuit:
    """Tell what becomes of a circuit after a batch.

    Answers in a batch make up for its failures: the model works. While the circuit is open they
    change nothing, since that batch began before the pause.

    Args:
        circuit: as read under its lock.
        seen: what the batch tells.
        limits: when it opens, and for how long.
        jitter: a number in [0, 1) that spreads probes.
    """
    is_open = circuit.state is State.OPEN
    if seen.answers and not is_open:
        circuit = Circuit()
    elif seen.failures and not seen.answers:
        failures = min(circuit.failures + seen.failures, _MOST_COUNTED)
        circuit = replace(circuit, failures=failures, reason=seen.reason)
    if seen.asked_s is not None:
        rests_s = max(circuit.rests_s or 0.0, seen.asked_s)
        return replace(circuit, reason=seen.reason, rests_s=rests_s)
    is_enough = circuit.state is State.HALF_OPEN or circuit.failures >= limits.failures
    if is_open or seen.answers or not seen.failures or not is_enough:
        return circuit
    trips = min(circuit.trips + 1, _MOST_COUNTED)
    return replace(circuit, trips=trips, rests_s=pause_s(trips, limits, jitter=jitter))


def pause_s(trips: int, limits: Limits, *, jitter: float) -> float:
    """How long it stays open, in seconds: doubled each time, capped, shortened by up to a half.

    Args:
        trips: times that it opened since the last answer, this one among them; at least 1.
        limits: its first and its longest pause.
        jitter: a number in [0, 1).
    """
    full = min(limits.pause_s * 2.0 ** min(max(trips, 1) - 1, 30), limits.max_pause_s)
    return full * (0.5 + jitter / 2)
