"""The figures of a run as one table: printed, and kept as JSON and Markdown."""

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path

_CORRECT = (
    "Correct after every run: no job lost or doubled, one attempt and one annotation per item, "
    "stats equal to a recount."
)
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, with what it must be where it must be something."""

    what: str
    figure: str
    target: str = ""
    is_met: bool | None = None
    note: str = ""


@dataclass(slots=True)
class Report:
    """A run."""

    settings: dict[str, object]
    servers: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What was not correct after a run; must be empty."""
    raw: dict[str, object] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether everything was correct and every target is met."""
        return not self.faults and all(row.is_met is not False for row in self.rows)

    def markdown(self) -> str:
        """The table and what it was measured on."""
        heads = ("what", "figure", "target", "met", "note")
        cells = [(r.what, r.figure, r.target, _met(r), r.note) for r in self.rows]
        widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
        lines = [_line(heads, widths), _line(["-" * width for width in widths], widths)]
        lines += [_line(row, widths) for row in cells]
        faults = [f"- NOT CORRECT: {fault}" for fault in self.faults]
        verdict = faults or [_CORRECT]
        machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
        on = ", ".join([machine, *(f"{name} {value}" for name, value in self.servers.items())])
        how = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return "\n".join(
            [
                "# Benchmark",
                "",
                *lines,
                "",
                *verdict,
                "",
                f"On: {on}.",
                "",
                f"How: {how}. Ratios carry over to other machines, rates do not.",
                "",
            ]
        )

    def save(self, name: str) -> None:
        """Keep the run beside the programs."""
        RESULTS.mkdir(exist_ok=True)
        document = json.dumps({**asdict(self), "is_good": self.is_good}, indent=1) + "\n"
        RESULTS.joinpath(f"{name}.json").write_text(document)
        RESULTS.joinpath(f"{name}.md").write_text(self.markdown())


def _met(row: Row) -> str:
    return {None: "", True: "yes", False: "NO"}[row.is_met]


def _line(cells: tuple[str, ...] | list[str], widths: list[int]) -> str:
    return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"
