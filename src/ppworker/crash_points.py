"""Named places at which a process kills itself when it is told to; inert otherwise.

A developer proves with them that a death at that very place loses nothing and doubles nothing.
``PPWORKER_CRASH_AT=after_claim_commit`` kills the process (SIGKILL, as a power cut would) the first
time it reaches that place, ``after_claim_commit:5`` the fifth time.
"""

import os
import re
import signal
from threading import Lock

from ppworker.errors import ConfigurationError

POINTS = {
    "after_claim_commit": "a claim is committed, nothing has run",
    "before_model": "inputs are read, the model is about to be asked",
    "after_model": "the model has answered, nothing is written",
    "in_finish": "everything of a finish is written, its COMMIT is not sent",
    "after_finish_commit": "a finish is committed, nobody was told",
    "before_ack": "a command is followed and committed, its message not acknowledged",
    "after_upload_commit": "an upload is committed, no hint was sent",
    "in_operation_step": "a chunk of an operation is written, its COMMIT is not sent",
    "after_operation_step": "a chunk of an operation is committed, what follows it is not done",
}
"""Every point and where it is. Those of operations also come as ``in_operation_step.KIND``."""

_SHAPE = re.compile(r"(?P<name>[a-z_]+)(\.(?P<kind>[a-z_]+))?(:(?P<nth>[1-9][0-9]{0,6}))?")


class _Armed:
    """The point that kills this process, and how often it must still be reached."""

    def __init__(self, name: str, nth: int) -> None:
        self.name = name
        self._left = nth
        self._lock = Lock()

    def is_over(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left <= 0


_armed: _Armed | None = None


def arm(wanted: str | None) -> None:
    """Have this process die at a point, or at none; called once at its start.

    Raises:
        ConfigurationError: there is no such point.
    """
    global _armed  # noqa: PLW0603  one process has one death; passing it everywhere would show in every signature
    if not wanted:
        _armed = None
        return
    found = _SHAPE.fullmatch(wanted)
    is_known = found is not None and found["name"] in POINTS
    if found is None or not is_known or (found["kind"] and "operation" not in found["name"]):
        raise ConfigurationError(
            f"PPWORKER_CRASH_AT: there is no such point; there are {', '.join(POINTS)}, each with "
            "':N' for the Nth time"
        )
    name = found["name"] + (f".{found['kind']}" if found["kind"] else "")
    _armed = _Armed(name, int(found["nth"] or 1))


def reach(name: str, kind: str = "") -> None:
    """Die here if this process is told to; costs one comparison otherwise.

    Args:
        name: one of ``POINTS``.
        kind: of the operation, where the point is one of operations.
    """
    if _armed is None:
        return
    if _armed.name not in {name, f"{name}.{kind}"} or not _armed.is_over():
        return
    os.kill(os.getpid(), signal.SIGKILL)
