# ruff: noqa: INP001  a program, not part of a package
"""Reads a Dockerfile: its instructions, stage by stage. No shell is run and nothing is built.

As a program it prints what has to be done to build one stage, a line each for ``docker-steps.sh``:
``COPY``, ``RUN``, ``WORKDIR`` and ``ENV`` with their arguments behind a tab.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

KEYWORDS = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN",
    "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its continued lines joined, and the name of its stage."""

    stage: str
    keyword: str
    arguments: str


def read(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile in order.

    Raises:
        ValueError: a line begins with no known keyword, or stands before the first FROM.
    """
    found: list[Instruction] = []
    stage = ""
    for line in _joined(text):
        keyword, _, arguments = line.partition(" ")
        if keyword not in KEYWORDS:
            raise ValueError(f"unknown instruction {keyword!r}")
        if keyword == "FROM":
            stage = arguments.split()[-1]
        elif not stage and keyword != "ARG":
            raise ValueError(f"{keyword} stands before the first FROM")
        found.append(Instruction(stage, keyword, arguments.strip()))
    return found


def _joined(text: str) -> list[str]:
    lines: list[str] = []
    open_line = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#") or not stripped:
            continue
        if stripped.endswith("\\"):
            open_line += stripped[:-1].rstrip() + " "
        else:
            lines.append(open_line + stripped)
            open_line = ""
    if open_line:
        raise ValueError("the last line is continued by nothing")
    return lines


if __name__ == "__main__":
    path, wanted = sys.argv[1:]
    for each in read(Path(path).read_text(encoding="utf-8")):
        if each.stage == wanted and each.keyword in {"COPY", "RUN", "WORKDIR", "ENV"}:
            sys.stdout.write(f"{each.keyword}\t{each.arguments}\n")
