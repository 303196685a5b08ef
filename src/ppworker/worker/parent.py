"""Ends a worker process whose supervisor is gone; otherwise it would work on unseen."""

import ctypes
import logging
import os
import signal
import sys
import time
from threading import Thread

log = logging.getLogger(__name__)

SUPERVISOR_PID = "PPWORKER_SUPERVISOR_PID"
"""Environment variable by which a child knows its supervisor, even if that died first."""

_PR_SET_PDEATHSIG = 1
_WATCH_S = 1.0


def bind_to_parent() -> bool:
    """Have this process stop gracefully (SIGTERM to itself) when its supervisor dies.

    Call it in the main thread before the work begins. Does nothing in a process that no
    supervisor started; returns whether it did something.
    """
    pid = os.environ.get(SUPERVISOR_PID, "")
    if not pid.isdigit():
        return False
    # Our children are not the supervisor's children: they must not watch it.
    del os.environ[SUPERVISOR_PID]
    if sys.platform == "linux":
        _ask_kernel()
    # Also on Linux: a seccomp profile may refuse prctl, and the parent may be dead already.
    Thread(target=_watch, args=(int(pid),), name="parent-watch", daemon=True).start()
    return True


def _ask_kernel() -> None:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) == 0:
            return
        reason = os.strerror(ctypes.get_errno())
    except (OSError, AttributeError) as error:
        reason = str(error)
    log.debug("PR_SET_PDEATHSIG is refused, watching the parent instead: %s", reason)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    log.warning("the supervisor is gone, stopping")
    os.kill(os.getpid(), signal.SIGTERM)
