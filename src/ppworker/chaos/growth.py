"""What long-lived processes take of the machine over time: memory, files, threads, connections."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ppworker.chaos import programs
from ppworker.chaos.cluster import Cluster
from ppworker.chaos.programs import Program

YOUNG_S = 60.0
"""Age from which on a process counts: before, it still loads and grows into its work."""
MOST_GROWTH = 0.05
_OF_SPAN = 0.25
"""Share of what was seen of a process that is its beginning, and its end."""
_LEAST = 8
"""Samples of a process from which on a growth can be told."""
_LONG = 60
"""Samples from which on it can be told whether files, threads or connections grow."""
_SLACK = 10
"""Files and threads that come and go with what is being done at the moment: a worker's pool may
fill late, and a model apart opens four files."""
_CONNECTIONS_SLACK = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a process."""

    memory_mb: float
    files: int
    threads: int


@dataclass(slots=True)
class Growth:
    """Looks at processes, and at the connections of all of them."""

    samples: dict[tuple[str, int], list[Sample]] = field(default_factory=dict)
    """By what a process is and its id, of those that were old enough."""
    connections: list[int] = field(default_factory=list)
    _seen: dict[int, float] = field(default_factory=dict)

    def look(self, cluster: Cluster, roles: Mapping[str, Program]) -> None:
        """Take a sample of every process of the programs."""
        now = time.monotonic()
        for name, program in roles.items():
            for pid in program.pids():
                if now - self._seen.setdefault(pid, now) < YOUNG_S:
                    continue
                what = "supervisor" if pid == program.pid else programs.role(pid)
                found = Sample(
                    programs.memory_mb(pid), programs.open_files(pid), programs.threads(pid)
                )
                if found.memory_mb and what:
                    self.samples.setdefault((f"{name} {what}", pid), []).append(found)
        self.connections.append(
            cluster.one(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'ppworker %' "
                "AND application_name <> 'ppworker chaos'"
            )
        )

    def memory(self) -> dict[str, float]:
        """Growth of memory of each kind of process as a share, the largest of its processes."""
        found: dict[str, float] = {}
        for (what, _), seen in self.samples.items():
            if len(seen) >= _LEAST:
                first, last = ends([each.memory_mb for each in seen])
                found[what] = max(found.get(what, -1.0), last / first - 1)
        return {what: round(share, 3) for what, share in sorted(found.items())}

    def missed(self) -> list[str]:
        """What grew, as sentences."""
        said = [
            f"memory of {what} grew by {share:.1%}"
            for what, share in self.memory().items()
            if share > MOST_GROWTH
        ]
        for (what, pid), seen in self.samples.items():
            for name in ("files", "threads"):
                first, last = peaks([getattr(each, name) for each in seen])
                if last > first + _SLACK:
                    said.append(f"{name} of {what} {pid} grew from {first:g} to {last:g}")
        first, last = peaks(self.connections)
        if last > first + _CONNECTIONS_SLACK:
            said.append(f"database connections grew from {first:g} to {last:g}")
        return said

    def peaks(self) -> dict[str, tuple[float, float]]:
        """The highest numbers of files of each kind of process in its first and second half, and
        of connections."""
        found = {"connections": peaks(self.connections)}
        for (what, pid), seen in self.samples.items():
            if len(seen) >= _LONG:
                found[f"files of {what} {pid}"] = peaks([each.files for each in seen])
        return found


def peaks(values: Sequence[float]) -> tuple[float, float]:
    """The highest of the first half and of the second; zeros where too little was seen.

    What is opened when it is needed first, and kept, is no growth: pools fill within a few faults.
    A leak goes on.
    """
    if len(values) < _LONG:
        return 0.0, 0.0
    middle = len(values) // 2
    return max(values[:middle]), max(values[middle:])


def ends(values: Sequence[float]) -> tuple[float, float]:
    """Medians of the beginning and of the end of what was seen."""
    part = max(1, int(len(values) * _OF_SPAN))
    return statistics.median(values[:part]), statistics.median(values[-part:])
