"""Draws one frame of ``top``: what a person should see of the activity, on the room there is.

Names come from outside and are shown as data. Columns leave narrow terminals in the order of their
worth, rows leave low ones, and each section says how many it does not show.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ppworker.cli import render
from ppworker.domain.circuit import State
from ppworker.store.activity import Activity, OperationStatus
from ppworker.store.overview import ProcessorStatus, WorkerStatus

_Part = str | Text | tuple[str, str]
LATE_S = 300.0
"""Seconds after which a due job has waited too long, as the alert has it."""
_LEVELS = "▁▂▃▄▅▆▇█"
_WIDE_ENOUGH = 70
"""Columns from which on a dataset stands before its post-processor, and more than the least."""
_BAR_CELLS = 12
_HEAD_LINES = 2
"""Lines of a section beside its rows: an empty one and the head."""
_LEAST_ROWS = 2
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Where a frame is drawn."""

    width: int
    height: int | None = None
    """Lines there are; None draws every row in full."""
    is_plain: bool = False
    """Whether only ASCII can be shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What is drawn."""

    activity: Activity | None
    """The latest there is; None before the first."""
    source: str
    """Where it was read: an address without a password."""
    notice: str = ""
    """What is wrong with the connection, if something is."""
    rates: Sequence[float] = field(default=())
    """Jobs completed a second in the frames before, oldest first."""
    footer: str = ""


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    show: Callable[[Any], Text | str]
    is_figure: bool = True
    least_width: int = 0
    """Columns that the terminal must have for this one to be shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    columns: Sequence[_Column]
    rows: Sequence[Any]
    total: int
    worth: int
    """Rows it gets for each one that the least worthy section gets."""


def draw(frame: Frame, room: Room) -> RenderableType:
    """The frame as rich prints it: never wider or higher than the room."""
    lines: list[RenderableType] = [_head(frame)]
    if frame.notice:
        lines.append(Text(render.line(frame.notice), style="bold red"))
    if frame.activity is not None:
        lines += _totals(frame, frame.activity, room)
        sections = _sections(frame.activity, room)
        footer = 2 if frame.footer else 0
        free = None if room.height is None else room.height - len(lines) - footer
        for section in _fitted(sections, free):
            lines += [Text(), _table(section, room)]
            if hidden := section.total - len(section.rows):
                lines.append(Text(f"and {hidden:,} more", style="dim"))
    if frame.footer:
        lines += [Text(), Text(frame.footer, style="dim")]
    if room.height is not None:
        lines = _cut(lines, room)
    return Group(*lines)


def _cut(lines: list[RenderableType], room: Room) -> list[RenderableType]:
    """The lines as far as they fit, each on one line of the terminal."""
    for line in lines:
        if isinstance(line, Text):
            line.truncate(room.width, overflow="crop" if room.is_plain else "ellipsis")
            line.no_wrap = True
    return lines


def _head(frame: Frame) -> Text:
    when = "" if frame.activity is None else f"  {frame.activity.at:%H:%M:%S}"
    return Text.assemble(("ppworker", "bold"), f"{when}  {render.line(frame.source)}")


def _totals(frame: Frame, now: Activity, room: Room) -> list[RenderableType]:
    running = [each for each in now.processors if not each.is_held]
    oldest = max((each.oldest_due_s for each in running if each.oldest_due_s), default=None)
    parts: list[_Part] = ["due ", (f"{sum(each.due for each in running):,}", "bold")]
    parts += [] if oldest is None else [" (oldest ", _waited(oldest), ")"]
    parts += ["  in flight ", (f"{sum(each.processing for each in now.processors):,}", "bold")]
    others = {
        "held": sum(each.due for each in now.processors if each.is_held),
        "waiting": sum(each.waiting for each in now.processors),
        "scheduled": sum(each.scheduled for each in now.processors),
    }
    parts += [f"  {word} {n:,}" for word, n in others.items() if n]
    rates = Text.assemble("completed ", (f"{_rate(now.ended.get('finished', 0.0))}/s", "bold"))
    for cause, rate in now.ended.items():
        if cause != "finished":
            rates.append(f"  {cause} {_rate(rate)}/s")
    rates.append("  " + ("" if room.is_plain else _spark(frame.rates)))
    return [Text.assemble(*parts), rates, _failures(now), _upkeep(now)]


def _failures(now: Activity) -> Text:
    reasons: dict[str, int] = {}
    for processor in now.processors:
        for reason, n in processor.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + n
    failed = sum(reasons.values())
    bound = "+" if now.failed_is_bound else ""
    most_first = sorted(reasons.items(), key=lambda each: (-each[1], each[0]))
    named = ", ".join(f"{render.line(reason)} {n:,}" for reason, n in most_first)
    return Text.assemble(
        "failed ", (f"{failed:,}{bound}", "bold red" if failed else "bold"),
        f": {named}" if named else "",
    )  # fmt: skip


def _upkeep(now: Activity) -> Text:
    oldest = now.oldest_delta_s
    bound = "+" if now.deltas.is_bound else ""
    late: list[_Part] = [] if oldest is None else [" (oldest ", _waited(oldest), ")"]
    letters = f"{now.dead_letters.rows:,}{'+' if now.dead_letters.is_bound else ''}"
    return Text.assemble(
        f"stats exact, deltas to fold {now.deltas.rows:,}{bound}", *late,
        "  dead letters ", (letters, "bold red" if now.dead_letters.rows else ""),
    )  # fmt: skip


def _sections(now: Activity, room: Room) -> list[_Section]:
    found = [
        _Section(
            columns=_processor_columns(now, room),
            rows=sorted(now.processors, key=_busy_first),
            total=len(now.processors),
            worth=3,
        )
    ]
    if now.operations:
        columns = _operation_columns(room)
        total = now.operations_live
        found.append(_Section(columns=columns, rows=now.operations, total=total, worth=1))
    found.append(
        _Section(
            columns=_WORKER_COLUMNS,
            rows=sorted(now.workers, key=_lost_first),
            total=len(now.workers),
            worth=2,
        )
    )
    return found


def _busy_first(each: ProcessorStatus) -> tuple[int, int, bool, str, str]:
    """By the digits of what runs or could, then of what waits, so that rows do not jump about."""
    all_live = each.due + each.processing + each.scheduled + each.waiting
    active = each.processing + (0 if each.is_held else each.due)
    magnitudes = [-len(str(n)) if n else 0 for n in (active, all_live)]
    return (magnitudes[0], magnitudes[1], not each.failed, each.dataset, each.name)


def _lost_first(each: WorkerStatus) -> tuple[bool, bool, str, int]:
    return (each.state != "lost", not each.leases, each.host, each.pid)


def _processor_columns(now: Activity, room: Room) -> list[_Column]:
    def name(each: ProcessorStatus) -> str:
        is_narrow = room.width < _WIDE_ENOUGH
        return render.line(each.name if is_narrow else f"{each.dataset}/{each.name}")

    def state(each: ProcessorStatus) -> Text:
        if not each.enabled:
            return Text("disabled", "dim")
        if each.paused_by_operator:
            return Text("paused", "yellow")
        if each.circuit is State.HALF_OPEN:
            return Text("probing", "yellow")
        if each.circuit is State.OPEN and each.circuit_until is not None:
            left = (each.circuit_until - now.at).total_seconds()
            words = "failures" if room.width < _WIDE_ENOUGH else "paused by failures"
            return Text(f"{words} {_age(max(left, 0.0))}", "yellow")
        return Text("on", "green")

    def oldest(each: ProcessorStatus) -> Text:
        seconds = each.oldest_due_s
        if seconds is None:
            return Text("")
        return Text(_age(seconds)) if each.is_held else Text(*_waited(seconds))

    return [
        _Column("post-processor", name, is_figure=False),
        _Column("state", state, is_figure=False),
        _Column("due", lambda p: f"{p.due:,}"),
        _Column("oldest", oldest, least_width=_WIDE_ENOUGH),
        _Column("running", lambda p: f"{p.processing:,}", least_width=60),
        _Column("waiting", lambda p: f"{p.waiting:,}", least_width=90),
        _Column("scheduled", lambda p: f"{p.scheduled:,}", least_width=90),
        _Column("failed", lambda p: Text(f"{p.failed:,}", "red" if p.failed else "")),
        _Column("done/s", lambda p: _rate(now.finished.get(p.id, 0.0)), least_width=_WIDE_ENOUGH),
    ]


_STATE_STYLES = {"live": "green", "draining": "yellow", "lost": "bold red"}

_WORKER_COLUMNS = [
    _Column("worker", lambda w: render.line(f"{w.host}/{w.pid}"), is_figure=False),
    _Column("state", lambda w: Text(w.state, _STATE_STYLES[w.state]), is_figure=False),
    _Column("slots", lambda w: f"{w.slots}", least_width=50),
    _Column("leases", lambda w: f"{w.leases:,}"),
    _Column("last sign", lambda w: f"{_age(w.seen_s)} ago", least_width=40),
    _Column("version", lambda w: render.line(w.version), is_figure=False, least_width=90),
]  # fmt: skip


def _operation_columns(room: Room) -> list[_Column]:
    def progress(each: OperationStatus) -> str:
        if each.percent is None:
            return f"{each.done:,}"
        share = min(max(each.percent / 100, 0.0), 1.0)
        full, empty = ("#", ".") if room.is_plain else ("█", "░")
        cells = round(share * _BAR_CELLS)
        return f"{full * cells}{empty * (_BAR_CELLS - cells)} {each.percent:3.0f} %"

    def of(each: OperationStatus) -> str:
        return f"{each.done:,}" + ("" if each.total is None else f" of {each.total:,}")

    return [
        _Column("operation", lambda o: render.line(o.kind), is_figure=False),
        _Column("dataset", lambda o: render.line(o.dataset or ""), is_figure=False, least_width=60),
        _Column("state", lambda o: "running" if o.status == "processing" else "waiting",
                is_figure=False, least_width=50),
        _Column("progress", progress),
        _Column("done", of, least_width=90),
        _Column("age", lambda o: _age(o.age_s), least_width=60),
    ]  # fmt: skip


def _fitted(sections: list[_Section], lines: int | None) -> Iterable[_Section]:
    """The sections with as many rows as there are lines for, shared by their worth."""
    if lines is None:
        return sections
    while sections and lines < sum(_HEAD_LINES + _LEAST_ROWS for _ in sections):
        sections = [each for each in sections if each is not min(sections, key=_worth)]
    free = lines - _HEAD_LINES * len(sections)
    given = [0] * len(sections)
    while free > 0:
        wanting = [n for n, each in enumerate(sections) if given[n] < _wanted(each)]
        if not wanting:
            break
        least = min(wanting, key=lambda n: (given[n] / sections[n].worth, n))
        given[least] += 1
        free -= 1
    return [
        # The last line of a section that does not fit says how many are missing.
        each if n >= _wanted(each) else replace(each, rows=each.rows[: max(n - 1, 0)])
        for n, each in zip(given, sections, strict=True)
    ]


def _worth(section: _Section) -> int:
    return section.worth


def _wanted(section: _Section) -> int:
    return len(section.rows) + (section.total > len(section.rows))


def _table(section: _Section, room: Room) -> RenderableType:
    shown = [each for each in section.columns if each.least_width <= room.width]
    if not section.total:
        return Text(f"no {shown[0].title}s", style="bold")
    is_bounded = room.height is not None
    table = Table(box=None, pad_edge=False, header_style="bold", expand=is_bounded)
    for n, column in enumerate(shown):
        table.add_column(
            column.title,
            justify="right" if column.is_figure else "left",
            no_wrap=True,
            overflow="crop" if room.is_plain else "ellipsis",
            ratio=1 if n == 0 and is_bounded else None,
            min_width=len(column.title) if n else 8,
        )
    for row in section.rows:
        table.add_row(*(_text(column.show(row)) for column in shown))
    return table


def _text(value: Text | str) -> Text:
    return Text(value) if isinstance(value, str) else value


def _spark(rates: Sequence[float]) -> str:
    """Rates as a line of little bars."""
    most = max(rates, default=0.0)
    if most <= 0:
        return ""
    return "".join(_LEVELS[min(int(rate / most * 8), 7)] for rate in rates)


def _age(seconds: float) -> str:
    """Seconds in the words of a person, short."""
    if seconds < 10:  # noqa: PLR2004  below it a tenth is worth reading
        return f"{max(seconds, 0.0):.1f} s"
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.0f} h"
    return f"{seconds / _DAY:.0f} d"


def _waited(seconds: float) -> tuple[str, str]:
    """An age, and its colour."""
    return _age(seconds), "bold red" if seconds > LATE_S else ""


def _rate(per_second: float) -> str:
    if 0 < per_second < 10:  # noqa: PLR2004  as for ages
        return f"{per_second:.1f}"
    return f"{per_second:,.0f}"
