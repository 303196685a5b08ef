"""One life of a model's process: started, spoken to, ended."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from typing import IO

from ppworker.errors import BadResponse, RunnerCrashed, RunnerTimeout
from ppworker.runners import wire

TAIL_BYTES = 4096
"""How much of what the model printed last is kept for the message of a crash."""

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_SLICE_S = 0.5
_GRACE_S = 2.0
_REAP_S = 5.0
_LAST_WORDS = 300


class ModelProcess:
    """A child process with a channel to it. For one thread, ``interrupt`` excepted."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._channel = wire.Channel(ours)
        self._process = subprocess.Popen(  # noqa: S603  our own interpreter and module
            [sys.executable, "-P", "-m", "ppworker.runners.host", str(theirs.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
            env=_environment(),
        )
        theirs.close()
        self._tail = _Tail(self._process.stdout)

    @property
    def pid(self) -> int:
        """Process id; also the id of its process group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def ask(self, request: bytes, *, timeout_s: float, limit: int) -> bytes:
        """Send a request and wait for the reply.

        After any error raised here the process is of no use and must be ended by ``kill``.

        Args:
            request: document for the host.
            timeout_s: most seconds for both ways together.
            limit: most bytes of the reply.

        Raises:
            RunnerTimeout: no reply in time.
            RunnerCrashed: the process died; says how, and what it printed last.
            BadResponse: the reply is longer than ``limit``.
        """
        deadline = time.monotonic() + timeout_s
        try:
            self._channel.send(request, timeout_s=timeout_s)
            return self._receive(deadline, limit)
        except TimeoutError:
            raise RunnerTimeout(f"the model did not answer within {timeout_s:g} s") from None
        except wire.TooLong as error:
            raise BadResponse(f"the model's answer is too long: {error}") from None
        except (EOFError, OSError):
            raise RunnerCrashed(f"the model's process {self._obituary()}") from None

    def end(self) -> None:
        """Let it close its model and leave; insist after two seconds."""
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S / 2)
        if self.alive:
            self._signal_group(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S / 2)
        self.kill()

    def interrupt(self) -> None:
        """Kill it from another thread: the one that waits for its reply sees it die."""
        self._signal_group(signal.SIGKILL)

    def kill(self) -> None:
        """End it and all it started, now, and give back what it took. A second call is harmless."""
        self._signal_group(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel may hold it in I/O
            self._process.wait(_REAP_S)
        self._channel.close()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._tail.finish()

    def _receive(self, deadline: float, limit: int) -> bytes:
        # In slices, for a process that the model started may keep the socket open after its death.
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            dead = not self.alive  # asked before the look, so that a last reply is not missed
            if self._channel.readable(min(left, _SLICE_S)):
                return self._channel.receive(timeout_s=left, limit=limit)
            if dead:
                raise EOFError

    def _obituary(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAP_S)
        code = self._process.poll()
        if code is None:
            return "hung up" + self._tail.last_words()
        if code >= 0:
            return f"ended with exit code {code}" + self._tail.last_words()
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}" + self._tail.last_words()

    def _signal_group(self, number: int) -> None:
        # Its whole group, also after its own death: what it started must not stay behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


class _Tail:
    """Reads what a process prints, so that it never blocks, and keeps the end of it."""

    def __init__(self, pipe: IO[bytes] | None) -> None:
        self._pipe = pipe
        self._kept: deque[bytes] = deque()
        self._size = 0
        self._thread = threading.Thread(target=self._drain, name="model-output", daemon=True)
        self._thread.start()

    def last_words(self) -> str:
        """The last lines, ready to be appended to a message; empty if it printed nothing."""
        self._thread.join(_SLICE_S)  # the rest may still be on its way
        said = b"".join(self._kept).decode("utf-8", "replace")
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        words = " | ".join(lines)[-_LAST_WORDS:]
        return f"; it printed last: {words}" if words else ""

    def finish(self) -> None:
        """Wait for the end of the output, a moment at most."""
        self._thread.join(_SLICE_S)

    def _drain(self) -> None:
        if self._pipe is None:
            return
        with self._pipe, contextlib.suppress(OSError):
            while chunk := os.read(self._pipe.fileno(), TAIL_BYTES):
                self._kept.append(chunk)
                self._size += len(chunk)
                while self._size - len(self._kept[0]) >= TAIL_BYTES:
                    self._size -= len(self._kept.popleft())


def _environment() -> dict[str, str]:
    """One thread per model, for one model per slot fills the machine already; an operator's own
    figure stays. The worker's settings hold passwords that are none of a model's business.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PPWORKER_")}
    return dict.fromkeys(_ONE_THREAD, "1") | kept
