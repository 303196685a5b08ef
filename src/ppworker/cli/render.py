"""Prints answers: JSON for programs, tables and sentences for people.

Whatever came from outside is shown as data: it can neither style the terminal nor move its cursor.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

MOST_ROWS = 10_000
"""Longest list that is printed at once."""
_PIPE_WIDTH = 10_000


def plain(value: Any) -> Any:
    """The value as JSON can say it."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if hasattr(value, "_mapping"):  # a row of SQLAlchemy
        return plain(dict(value._mapping))  # noqa: SLF001  public by documentation
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, UUID | Path | StrEnum) else value


def as_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    # ASCII: valid whatever encoding the reader's end expects.
    sys.stdout.write(json.dumps(plain(value), separators=(",", ":"), default=str) + "\n")
    sys.stdout.flush()


def say(*sentences: str) -> None:
    """Print sentences for a person, one a line."""
    for sentence in sentences:
        sys.stdout.write(line(sentence) + "\n")


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, empty: str = "") -> None:
    """Print rows as a table of the named columns; ``empty`` where there are none."""
    if not rows:
        say(empty or "none")
        return
    from rich.console import Console  # noqa: PLC0415  costs what JSON need not pay
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        is_figure = all(isinstance(row.get(column), int | float | None) for row in rows)
        shown.add_column(
            column.replace("_", " "),
            justify="right" if is_figure else "left",
            no_wrap=column == "id" or column.endswith("_id"),
            overflow="fold",
        )
    for row in rows:
        shown.add_row(*(Text(cell(row.get(column))) for column in columns))
    # A pipe has no width: a line there is a row, so that grep and awk find it whole.
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(width=width, soft_wrap=False).print(shown, no_wrap=width is not None)


def cell(value: Any) -> str:
    """One value as text of one line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) <= 1 else f"{value:.1f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{line(str(key))} {cell(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(cell(each) for each in value)
    return line(str(value))


def line(text: str) -> str:
    """The text with every character that is no plain letter on a line written as its escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def moment(at: datetime) -> str:
    """A time for a person."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def failing(reason: str, until: datetime | None) -> str:
    """The state of a post-processor whose model fails, in the words that all commands have for it.

    Args:
        reason: why the model failed last, empty when that is not known.
        until: when its pause ends; None when that is over and a probe is to find out.
    """
    state = "probing" if until is None else f"paused by failures until {moment(until)}"
    return f"{state} ({reason})" if reason else state


def shortened(text: str | None, most: int = 60) -> str:
    """The beginning of a text."""
    text = text or ""
    return text if len(text) <= most else text[: most - 1] + "…"


def compact(value: Any) -> str:
    """A value as JSON of one line, for a person: letters as they are."""
    return json.dumps(plain(value), ensure_ascii=False, separators=(", ", ": "), default=str)
