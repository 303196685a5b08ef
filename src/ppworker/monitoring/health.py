"""Decides whether a group of processes is live, started and ready, from what each wrote of itself.

Live never asks the database or redis: an outage of theirs must not have anybody restart workers.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ppworker.monitoring import folder, vitals
from ppworker.monitoring.vitals import Vitals

LOOP_S = 10.0
"""Seconds after which a main loop that notes each second is taken for blocked."""
DATABASE_CALL_S = 60.0
"""Seconds that a call of the database may last when it is silent, beyond what a beat allows."""
LOOKS = 3
"""Looks for work that may be missed."""
_LONGEST_TURN_S = 2.0
"""Seconds that one turn of the loop that finds work may take though it polls more often."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer of a health endpoint."""

    is_ok: bool
    reasons: Sequence[str] = ()
    """Why not, or what is worse than it should be."""
    degraded: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The rules, for one group of processes.

    Attributes:
        place: folder of the group; None for a process that stands alone.
        lease_s: life of a lease; a heartbeat beats three times in it.
        poll_s: seconds between two looks for work.
        database: whether the database answered within a second. Never raises.
        redis: whether redis answered; None when there is none. Never raises.
        clock: the monotonic clock that vitals are noted by.
    """

    place: Path | None
    lease_s: float
    poll_s: float
    database: Callable[[], bool]
    redis: Callable[[], bool | None]
    clock: Callable[[], float] = time.monotonic
    _started: set[str] = field(default_factory=set)

    def live(self) -> Verdict:
        """Whether every process that runs also gets on; one that died is being restarted."""
        blocked = [f"{each.slot}: {what}" for each in self.living() for what in self._blocked(each)]
        return Verdict(not blocked, blocked)

    def started(self) -> Verdict:
        """Whether every process has begun to work once: settings and schema fit, servers answered.

        Models are loaded when their first job comes, and unloaded when they idle, so none is
        waited for.
        """
        if self.place is None:
            return Verdict(is_ok=True)
        door = folder.door_slot(self.place)
        slots = [*self._slots(), *([door] if door else [])]
        for slot in slots:
            found = vitals.read(self.place, slot)
            if found is not None and found.started_at is not None:
                self._started.add(slot)
        missing = [slot for slot in slots if slot not in self._started]
        return Verdict(not missing, [f"{slot}: has not started yet" for slot in missing])

    def ready(self) -> Verdict:
        """Whether work that is sent here is done: the database answers and some worker looks."""
        reasons = []
        if self.place is not None and folder.is_draining(self.place):
            reasons.append("draining")
        if not self.database():
            reasons.append("the database does not answer")
        unwritten: list[str] = []
        idle = dict.fromkeys(self._slots(), "does not run")
        for each in self.living():
            idle.pop(each.slot, None)
            if why := self._not_working(each):
                idle[each.slot] = why
            elif self._is_unwritten(each):
                unwritten.append(f"{each.slot}: cannot write its signs of life")
        told = [f"{slot}: {why}" for slot, why in idle.items()]
        if idle and len(idle) == len(self._slots()):
            reasons += ["no worker looks for jobs", *told]
            told = []
        told += unwritten
        if self.redis() is False:
            told.append("redis")
        return Verdict(not reasons, reasons, told)

    def living(self) -> list[Vitals]:
        """What each worker process that runs last wrote."""
        if self.place is None:
            return []
        found = [vitals.read(self.place, slot) for slot in self._slots()]
        return [each for each in found if each is not None]

    def _slots(self) -> list[str]:
        return folder.worker_slots(self.place) if self.place else []

    def _blocked(self, found: Vitals) -> list[str]:
        now, told = self.clock(), []
        if self._is_unwritten(found):
            return []
        if now - found.noted_at > LOOP_S:
            told.append(f"its main loop is blocked for {now - found.noted_at:.0f} s")
        # Not renewed but turned: while the database is away the heartbeat turns all the same.
        beat_at = found.heartbeat_at
        if beat_at is not None and now - beat_at > self.lease_s + DATABASE_CALL_S:
            told.append(f"its heartbeat is blocked for {now - beat_at:.0f} s")
        return told

    def _is_unwritten(self, found: Vitals) -> bool:
        return found.is_unwritten and self.clock() - found.touched_at <= LOOP_S

    def _not_working(self, found: Vitals) -> str:
        if found.is_draining:
            return "draining"
        if found.started_at is None:
            return "starting"
        if self._is_unwritten(found):
            return ""  # who gets on and works, but has no room to tell of it
        unrenewed_s = 0.0 if found.renewed_at is None else self.clock() - found.renewed_at
        if unrenewed_s > self.lease_s + vitals.WRITE_S:
            return f"the database has not answered it for {unrenewed_s:.0f} s"
        looked_at = found.looked_at or found.started_at
        unlooked_s = self.clock() - looked_at
        if unlooked_s > LOOKS * max(self.poll_s, _LONGEST_TURN_S) + vitals.WRITE_S:
            return f"has not looked for jobs for {unlooked_s:.0f} s"
        return ""
