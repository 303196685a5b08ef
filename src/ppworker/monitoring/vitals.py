"""Signs of life that each process writes down, and whoever serves the port reads.

Times are of the system's monotonic clock, which all processes of a machine share, so that a clock
that is set cannot make anybody dead.
"""

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ppworker.monitoring import folder
from ppworker.monitoring.folder import Place

log = logging.getLogger(__name__)

WRITE_S = 1.0
"""Seconds between two notes of a process."""
UNWRITTEN_S = 3 * WRITE_S
"""Seconds by which a file may be younger than the note in it."""


@dataclass(slots=True, kw_only=True)
class Vitals:
    """What a process last said of itself; a time that is None has not come yet."""

    slot: str
    pid: int
    version: str
    worker: str = ""
    """Id in the register of workers."""
    started_at: float | None = None
    """When settings, schema and servers were found to be in order and work began."""
    noted_at: float = 0.0
    """When the main loop came by last."""
    heartbeat_at: float | None = None
    """When the heartbeat turned last, whether or not the database answered."""
    renewed_at: float | None = None
    """When the database answered it last."""
    looked_at: float | None = None
    """When the loop that finds work turned last."""
    swept_at: float | None = None
    """When a sweep succeeded last."""
    slots: int = 0
    busy: int = 0
    in_progress: dict[str, int] = field(default_factory=dict)
    """Leases held, by the names of their post-processors."""
    connections: int = 0
    """Database connections in use."""
    is_draining: bool = False
    touched_at: float = 0.0
    """When it said last that it gets on, written or not: on a full disk it touches its file."""

    @property
    def is_unwritten(self) -> bool:
        """Whether it gets on and cannot write it down; what is written is old then."""
        return self.touched_at - self.noted_at > UNWRITTEN_S


class Journal:
    """Writes the vitals of this process down, about once a second; never raises."""

    def __init__(
        self,
        place: Place,
        *,
        version: str,
        worker: str = "",
        slots: int = 0,
        look: Callable[[Vitals], None] = lambda _: None,
    ) -> None:
        """Begin a journal.

        Args:
            place: where this process stands; without a folder nothing is written.
            version: of the program.
            worker: id in the register of workers.
            slots: batches this process works on side by side.
            look: fills in what is asked for rather than told.
        """
        self.vitals = Vitals(
            slot=place.slot, pid=os.getpid(), version=version, worker=worker, slots=slots
        )
        self._look = look
        self._path = place.folder and _path(place.folder, place.slot)
        self._next_at = 0.0
        self._has_failed = False

    def begin(self) -> None:
        """Say that work has begun."""
        self.vitals.started_at = time.monotonic()
        self.note(now=True)

    def drain(self) -> None:
        """Say that no more work is taken."""
        self.vitals.is_draining = True
        self.note(now=True)

    def beat(self, *, is_renewed: bool) -> None:
        """Say that the heartbeat turned, and whether the database answered it."""
        self.vitals.heartbeat_at = time.monotonic()
        if is_renewed:
            self.vitals.renewed_at = self.vitals.heartbeat_at

    def swept(self) -> None:
        """Say that a sweep succeeded."""
        self.vitals.swept_at = time.monotonic()

    def note(self, *, now: bool = False) -> None:
        """Write, if it is time; to be called by the main loop, whose life it proves."""
        at = time.monotonic()
        if self._path is None or (at < self._next_at and not now):
            return
        self._next_at = at + WRITE_S
        self.vitals.noted_at = at
        try:
            self._look(self.vitals)
            folder.write(self._path, asdict(self.vitals))
        except Exception as error:  # noqa: BLE001  a full disk must not end the process
            if not self._has_failed:
                log.warning("signs of life cannot be written: %s", error)
            self._has_failed = True
            with suppress(OSError):
                os.utime(self._path)
        else:
            self._has_failed = False


def read(place_folder: Path, slot: str) -> Vitals | None:
    """What a process last wrote; None when it does not live, or has not written yet."""
    path = _path(place_folder, slot)
    found = folder.read(path)
    try:
        if not found:
            return None
        age_s = time.time() - path.stat().st_mtime
        # In the future: the clock was set back, and tells nothing.
        touched_at = time.monotonic() - age_s if age_s > -WRITE_S else 0.0
        return Vitals(**found | {"touched_at": touched_at})
    except (TypeError, OSError):
        return None


def _path(place_folder: Path, slot: str) -> Path:
    return place_folder / f"vitals-{slot}.json"
