"""Groups of processes: started, paused and stopped together; what they cost, from /proc."""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parent.parent
_PROC = Path("/proc")
_STOP_S = 30.0
_STAT_STATE, _STAT_PARENT = 0, 1
"""Fields of /proc/PID/stat behind the name, which may itself hold blanks."""


class Fleet:
    """A command and all it starts, in a process group of their own."""

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str], log: Path
    ) -> None:
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                list(command),
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": python_path(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @property
    def leader(self) -> int:
        """Process id of the command itself."""
        return self._process.pid

    def pids(self) -> list[int]:
        """The command and its living descendants."""
        return [self.leader, *descendants(self.leader)]

    def workers(self) -> list[int]:
        """Children of the command, without helpers that they started."""
        return _children().get(self.leader, [])

    def pause(self) -> None:
        """Stop the whole group (SIGSTOP), and wait until it stands."""
        os.killpg(self.leader, signal.SIGSTOP)
        while not all(_state(pid) in {"T", "Z"} for pid in self.pids()):
            time.sleep(0.005)

    def resume(self) -> None:
        """Let it run on (SIGCONT)."""
        os.killpg(self.leader, signal.SIGCONT)

    def check(self) -> None:
        """Make sure that the command still runs."""
        if self._process.poll() is not None:
            raise RuntimeError(f"a worker command ended with code {self._process.returncode}")

    def stop(self) -> None:
        """Ask the command to stop, then make the group stop."""
        if self._process.poll() is None:
            self.resume()
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.leader, signal.SIGKILL)
                self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def python_path() -> str:
    """Where the processes find this package, and what the caller's own variable says."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def descendants(pid: int) -> list[int]:
    """All living processes below one."""
    children = _children()
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds used so far, to the nanosecond: the ticks of /proc/PID/stat are too coarse."""
    total = 0
    for pid in pids:
        for task in _PROC.joinpath(str(pid), "task").glob("*"):
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except OSError:
                continue  # ended meanwhile
    return total / 1e9


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident and proportional memory of a process, in millions of bytes."""
    fields = {}
    for line in _PROC.joinpath(str(pid), "smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        fields[name.rstrip(":")] = int(value) * 1024 / 1e6
    return fields["Rss"], fields["Pss"]


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for entry in _PROC.glob("[0-9]*"):
        stat = _stat(int(entry.name))
        if stat:
            found.setdefault(int(stat[_STAT_PARENT]), []).append(int(entry.name))
    return found


def _state(pid: int) -> str:
    stat = _stat(pid)
    return stat[_STAT_STATE] if stat else "Z"


def _stat(pid: int) -> list[str]:
    try:
        return _PROC.joinpath(str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
