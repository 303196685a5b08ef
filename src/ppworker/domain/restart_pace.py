"""How fast many failed jobs are restarted: as fast as leaves room for whatever comes in live."""

from dataclasses import dataclass

ROOM = 0.3
"""Share of the workers' slots that may be busy on average while jobs are restarted; with more,
what comes in would often find none idle."""
FIRST, LEAST, MOST = 20.0, 2.0, 1000.0
"""Jobs a second: to begin with, and the bounds."""
_SMOOTHING = 0.3
_FASTER, _SLOWER = 1.5, 0.7


@dataclass(frozen=True, slots=True)
class Pace:
    """What is known at the end of a chunk."""

    per_second: float = FIRST
    busy: float = 0.0
    """Share of slots at work, smoothed over the last chunks."""


def learn(pace: Pace, *, busy: int, slots: int, is_behind: bool) -> Pace:
    """The pace of the next chunk.

    Args:
        pace: the present one.
        busy: batches that run now, whoever's.
        slots: how many could.
        is_behind: whether jobs that are restarted already wait for a slot.
    """
    if not slots:  # nobody is there to be kept waiting, and nobody to do it
        return Pace(MOST, 0.0)
    share = _SMOOTHING * busy / slots + (1 - _SMOOTHING) * pace.busy
    per_second = pace.per_second * (_SLOWER if is_behind or share > ROOM else _FASTER)
    return Pace(min(MOST, max(LEAST, per_second)), share)
