"""What a promise's test or scenario found, kept as one file per name and commit."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

KEPT = Path(__file__).parents[3] / "benchmarks" / "results" / "promises"
"""Where results are kept in a checkout."""


def current_commit() -> str:
    """Short hash of the checkout's commit, ``+`` behind it when files differ; ``unknown`` outside
    of one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(  # noqa: S603  our own words
            ["git", "-C", str(here), *arguments],  # noqa: S607  whichever git the developer uses
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--short=10", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "../..")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changed else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run of one scenario or test.

    Attributes:
        name: of the scenario or test, as a file may be named.
        faults: numbers of the faults that it stands for, such as ``F17``.
        promise: what holds, as a sentence for people who run it.
        fault: what was done to it.
        how: the command or the test that does it again.
        target: the figure that it must reach.
        figure: the figure that it reached, in words.
        passed: whether it did.
        figures: everything measured, by name.
        phases: what each phase was like, for the plot: name, seconds, completed jobs a second.
        commit: short hash of the code, with a ``+`` where files were changed since.
        date: of the run, ISO 8601 in UTC.
        cores: processors of the machine.
    """

    name: str
    faults: Sequence[str]
    promise: str
    fault: str
    how: str
    target: str
    figure: str
    passed: bool
    figures: Mapping[str, Any] = field(default_factory=dict)
    phases: Sequence[Mapping[str, Any]] = ()
    commit: str = field(default_factory=current_commit)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    cores: int = field(default_factory=lambda: os.cpu_count() or 0)

    def save(self, folder: Path) -> Path:
        """Keep it in ``folder/NAME/COMMIT.json``, over an earlier one of the same commit."""
        path = folder / self.name / f"{self.commit}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        return path


def has_result(folder: Path, name: str) -> bool:
    """Whether a result of this very commit is kept, met or not."""
    return (folder / name / f"{current_commit()}.json").exists()


def read_all(folder: Path) -> list[Result]:
    """The newest result of each name, by name."""
    newest: dict[str, Result] = {}
    for path in sorted(folder.glob("*/*.json")):
        found = Result(**json.loads(path.read_text()))
        if found.name not in newest or found.date >= newest[found.name].date:
            newest[found.name] = found
    return [newest[name] for name in sorted(newest)]
