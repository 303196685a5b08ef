"""Programs of ppworker that the kit starts: their processes, their logs, and their end by pid."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

PROC = Path("/proc")
READY_S = 60.0
"""Seconds in which a program must say that it is ready, on a busy machine too."""
_STOP_S = 40.0
_ANSWER_S = 30.0
_MB = 1e6
_STATE, _PARENT = 0, 1
"""Fields of /proc/PID/stat behind the name, which may itself hold blanks."""


class LateError(RuntimeError):
    """Something did not happen in its time; the message says what."""


def wait_for(
    condition: Callable[[], object], *, seconds: float, what: str, every_s: float = 0.02
) -> None:
    """Look again and again until something is true.

    Raises:
        LateError: it did not become true in time.
    """
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= until:
            raise LateError(f"{what} did not happen within {seconds:g} s")
        time.sleep(every_s)


class Program:
    """A running program of ppworker, in a session of its own.

    Attributes:
        name: for its logs.
        log: what it and all its processes say, as JSON lines.
        ready: what it said when it was ready; empty before.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        name: str,
        environment: Mapping[str, str],
        folder: Path,
        descriptors: Sequence[int] = (),
    ) -> None:
        """Start ``python ARGUMENTS`` with just this environment.

        Args:
            arguments: of Python.
            name: for its logs.
            environment: all of it.
            folder: where it runs and where its logs go.
            descriptors: open files that it inherits under the same numbers.
        """
        self.name = name
        self.log = folder / f"{name}.log"
        self.ready: dict[str, Any] = {}
        self._said = folder / f"{name}.out"
        self._paused: set[int] = set()
        with self.log.open("ab") as log, self._said.open("wb") as out:
            self._process = subprocess.Popen(  # noqa: S603  our own program
                [sys.executable, *arguments],
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
                pass_fds=tuple(descriptors),
            )

    @property
    def pid(self) -> int:
        """Id of the program's first process: the supervisor, where there is one."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """How it ended: an exit code, or minus the signal; None while it runs."""
        return self._process.poll()

    @property
    def address(self) -> str:
        """Where it serves HTTP, once it is ready."""
        return str(self.ready["address"])

    def wait_ready(self, seconds: float = READY_S) -> None:
        """Wait for its line that says so.

        Raises:
            LateError: it ended instead, or is not ready in time.
        """
        wait_for(lambda: self._is_ready() or self.code is not None, seconds=seconds, what=self.name)
        if self.code is not None:
            raise LateError(f"{self.name} ended with code {self.code}; see {self.log}")

    def _is_ready(self) -> bool:
        for line in self._said.read_text().splitlines():
            if '"ready"' in line:
                self.ready = json.loads(line)
                return True
        return False

    def workers(self) -> list[int]:
        """Ids of its living worker processes, oldest first."""
        return [pid for pid in self.pids() if role(pid) == "worker" and state(pid) != "Z"]

    def pids(self) -> list[int]:
        """Ids of all its living processes."""
        return [pid for pid in (self.pid, *descendants(self.pid)) if state(pid) not in {"Z", ""}]

    def kill(self, pid: int) -> None:
        """End one of its processes without a word (SIGKILL)."""
        _signal(pid, signal.SIGKILL)
        self._paused.discard(pid)

    def pause(self, pid: int) -> None:
        """Stop one of its processes (SIGSTOP), and wait until it stands."""
        self._paused.add(pid)
        _signal(pid, signal.SIGSTOP)
        wait_for(lambda: state(pid) in {"T", "Z", ""}, seconds=10, what="a stop")

    def resume(self, pid: int) -> None:
        """Let a stopped process run on (SIGCONT)."""
        _signal(pid, signal.SIGCONT)
        self._paused.discard(pid)

    def wait(self, seconds: float) -> int:
        """Wait for its end; its exit code.

        Raises:
            LateError: it runs on.
        """
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise LateError(f"{self.name} did not end within {seconds:g} s") from None

    def stop(self, seconds: float = _STOP_S) -> int:
        """End it: what is paused goes on, SIGTERM, and SIGKILL to all of it after a while.

        Returns:
            Its exit code.
        """
        for pid in list(self._paused):
            self.resume(pid)
        known = self.pids()
        if self.code is None:
            self._process.terminate()
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                known = self.pids()
                self._process.kill()
        code = self._process.wait()
        began = time.monotonic()
        while left := [pid for pid in known if state(pid) not in {"Z", ""}]:
            # Children of a program that was killed watch for that and end by themselves.
            if code == 0 or time.monotonic() - began > seconds:
                for pid in left:
                    _signal(pid, signal.SIGKILL)
            time.sleep(0.05)
        return code

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that have these labels, as its own port tells it."""
        return sum_of(self.get("/metrics")[1], name, **labels)

    def get(self, path: str, *, key: str | None = None) -> tuple[int, str]:
        """Status code and body of a page of it; code 0 when nobody answers."""
        headers = [] if key is None else [("Authorization", f"Bearer {key}")]
        opener = build_opener(ProxyHandler({}))  # never through a proxy of this machine
        opener.addheaders = headers
        try:
            with opener.open(f"{self.address}{path}", timeout=_ANSWER_S) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()
        except (URLError, OSError):
            return 0, ""


def sum_of(scraped: str, name: str, **labels: str) -> float:
    """Sum of a metric's samples that have these labels, in Prometheus' text format."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    total = 0.0
    for line in scraped.splitlines():
        head, _, value = line.rpartition(" ")
        if head.partition("{")[0] == name and all(each in head for each in wanted):
            total += float(value)
    return total


def descendants(pid: int) -> list[int]:
    """All processes below one, parents before their children."""
    children: dict[int, list[int]] = {}
    for entry in PROC.glob("[0-9]*"):
        found = _stat(int(entry.name))
        if found:
            children.setdefault(int(found[_PARENT]), []).append(int(entry.name))
    found_below, waiting = [], [pid]
    while waiting:
        below = sorted(children.get(waiting.pop(0), []))
        found_below += below
        waiting += below
    return found_below


def state(pid: int) -> str:
    """One letter of what a process does (R, S, T stopped, Z ended); empty when there is none."""
    found = _stat(pid)
    return found[_STATE] if found else ""


def memory_mb(pid: int) -> float:
    """Memory that a process has for itself alone, in millions of bytes; 0 when it is gone."""
    try:
        lines = PROC.joinpath(str(pid), "smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0.0
    fields = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return (fields.get("Private_Clean", 0) + fields.get("Private_Dirty", 0)) * 1024 / _MB


def open_files(pid: int) -> int:
    """Files and sockets that a process has open."""
    with suppress(OSError):
        return len(list(PROC.joinpath(str(pid), "fd").iterdir()))
    return 0


def threads(pid: int) -> int:
    """Threads of a process."""
    with suppress(OSError):
        return len(list(PROC.joinpath(str(pid), "task").iterdir()))
    return 0


def own_environment(values: Mapping[str, str | None]) -> dict[str, str]:
    """The kit's environment without settings of ppworker, and with these; None leaves one out."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PPWORKER_")}
    return kept | {name: value for name, value in values.items() if value is not None}


def end_all(programs: Iterable[Program]) -> None:
    """End programs, the newest first, each whatever becomes of the others."""
    for program in reversed(list(programs)):
        with suppress(OSError):
            program.stop()


def role(pid: int) -> str:
    """Role of a process of ours (worker, api, monitor); empty for any other."""
    try:
        words = PROC.joinpath(str(pid), "cmdline").read_text().split("\0")
    except OSError:
        return ""
    if "ppworker.process" not in words:
        return ""
    return next((word for word in words if word in {"worker", "api", "monitor"}), "worker")


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _stat(pid: int) -> list[str]:
    try:
        return PROC.joinpath(str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
