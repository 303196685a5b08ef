"""The private folder of one supervisor's processes: their counters, their vitals, who they are.

Made at boot, removed at the end. A process is known in it by its slot (``worker-0``, ``api``), not
by its pid: one that is started again goes on with the counters of the one before it.
"""

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

FOLDER = "PPWORKER_RUNTIME_DIR"
"""Environment variable by which a child knows the folder."""
SLOT = "PPWORKER_SLOT"
"""Environment variable by which a child knows its name in it."""

_PREFIX = "ppworker-run-"
_LOCK = "lock"
_GROUP = "group.json"
_DRAINING = "draining"
_ORPHAN_S = 60.0
"""Seconds without a change after which a folder may be a dead supervisor's."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands: its slot, and the folder; no folder without a supervisor."""

    slot: str = "alone"
    folder: Path | None = None

    @classmethod
    def of_this_process(cls) -> Self:
        """As the supervisor told by the environment; what this process starts is told nothing."""
        slot, folder = os.environ.pop(SLOT, ""), os.environ.pop(FOLDER, "")
        return cls(slot, Path(folder)) if slot and folder else cls()

    def environment(self) -> dict[str, str]:
        """What tells a child."""
        return {SLOT: self.slot, FOLDER: str(self.folder)} if self.folder else {}


class RuntimeFolder:
    """The folder as its supervisor holds it."""

    def __init__(self, path: Path, lock: IO[bytes]) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def make(cls, workers: Sequence[str], *, door: str | None = None) -> Self:
        """Make an empty folder for this supervisor, and remove those that dead ones left behind.

        Args:
            workers: slots of the worker processes there will be.
            door: slot of the process that serves a port.
        """
        _remove_orphans()
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))  # for nobody else to read
        lock = (path / _LOCK).open("wb")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write(path / _GROUP, {"workers": list(workers), "door": door})
        return cls(path, lock)

    def forget(self, slot: str) -> None:
        """Remove what only a living process may show: its vitals and its live gauges."""
        for pattern in (f"vitals-{slot}.json", f"gauge_live*_{slot}.db"):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)

    def drain(self) -> None:
        """Say that everything is about to stop."""
        with suppress(OSError):
            (self.path / _DRAINING).touch()

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def worker_slots(folder: Path) -> list[str]:
    """Slots of the worker processes that the supervisor keeps running."""
    found = read(folder / _GROUP) or {}
    return list(found.get("workers", ()))


def door_slot(folder: Path) -> str | None:
    """Slot of the process that serves a port."""
    return (read(folder / _GROUP) or {}).get("door")


def is_draining(folder: Path) -> bool:
    """Whether the supervisor is about to stop everything."""
    return (folder / _DRAINING).exists()


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Put values into a small file at once: a reader sees all of it or what was there before.

    Raises:
        OSError: the folder is gone, or the disk is full.
    """
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(values), encoding="utf-8")
    aside.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    """What stands in a small file, None when there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _remove_orphans() -> None:
    """Remove folders of this user whose supervisor died without removing them."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # somebody else's, or just being removed
            found = path.stat()
            # One just made has no lock yet; one in use changes every second.
            is_old = time.time() - found.st_mtime > _ORPHAN_S
            if found.st_uid == os.getuid() and is_old:
                _remove_orphan(path)


def _remove_orphan(path: Path) -> None:
    with (path / _LOCK).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return  # its supervisor lives
        shutil.rmtree(path, ignore_errors=True)
