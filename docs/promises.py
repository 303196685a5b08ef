# ruff: noqa: INP001  a part of generate.py, not of a package
"""The page of promises and its pictures, made from the results that are kept."""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from ppworker.chaos.results import KEPT, Result, read_all

PICTURE = "pictures/promise-{name}.svg"

FAULTS = {
    "F1": "a worker is killed in the middle of jobs",
    "F2": "a process dies at a chosen point",
    "F3": "a worker stands still past its lease and goes on",
    "F4": "a model hangs while the heartbeats go on",
    "F5": "native code holds the interpreter longer than the lease",
    "F6": "a job kills its process each time",
    "F7": "a row that cannot be understood",
    "F8": "PostgreSQL restarts",
    "F9": "database sessions are terminated",
    "F10": "all connections of PostgreSQL are taken",
    "F11": "failover, and a server that turned read-only",
    "F12": "the connection is lost during the COMMIT",
    "F13": "redis is away, or flushed",
    "F14": "redis accepts and never answers",
    "F15": "hints are lost, late, doubled, or far too many",
    "F16": "an uploader dies between its COMMIT and the hint",
    "F17": "an upload is rolled back",
    "F18": "the same upload comes many times at once",
    "F19": "retries race with each other, with claims and rescues",
    "F20": "a cancel races with the end of its job",
    "F21": "items and datasets are deleted while jobs run",
    "F22": "items change their split while jobs run",
    "F23": "rolling restarts with jobs longer than the grace",
    "F24": "the supervisor is killed; signals come five times",
    "F25": "one worker process dies under its supervisor",
    "F26": "the model server is away for a minute",
    "F27": "the model server says: too many requests",
    "F28": "one dataset brings far more than the others",
    "F29": "jobs of low priority wait behind others",
    "F30": "a cap of running batches, with kills",
    "F31": "tens of thousands of failed jobs are retried at once",
    "F32": "a session keeps a transaction open for long",
    "F33": "long reports read the job table",
    "F34": "millions of finished jobs are kept",
    "F35": "old jobs are pruned under load",
    "F36": "the clocks of workers are wrong",
    "F37": "the process that sweeps dies or hangs",
    "F38": "workers of two versions, and runners unknown to one",
    "F39": "a wrong configuration",
    "F40": "label stats are damaged by hand",
    "F41": "a worker is cut off from the database longer than the lease",
    "F42": "the disk is full",
    "F43": "days of work with all faults by chance",
}
"""Every fault of the list, as people say it."""

_WIDTH, _HEIGHT = 720, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 34, 34
_SHADES = {"fault": "#f6d5d5", "baseline": "#e3edf7", "recovery": "#e2f1e2"}
_PLAIN = "#f2f2f2"
_LEAST_LABEL = 60
"""Pixels that a phase must be wide to be named."""


def table() -> str:
    """Every promise with the figure that it reached, then the faults that no result stands for."""
    found = read_all(KEPT)
    return "\n".join([*_table(found), "", *_missing(found), *_pictures(found)])


def files() -> dict[str, str]:
    """The pictures: paths below ``docs`` and contents."""
    return {
        PICTURE.format(name=each.name): picture(each)
        for each in read_all(KEPT)
        if _has_picture(each)
    }


def _table(found: Sequence[Result]) -> list[str]:
    if not found:
        return ["No result is kept yet."]
    lines = [
        "| fault | promise | what was done | must be | reached | how | date, commit |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in sorted(found, key=_order):
        reached = each.figure if each.passed else f"**not met:** {each.figure}"
        cells = (
            ", ".join(each.faults),
            each.promise,
            each.fault,
            each.target,
            reached,
            f"`{each.how}`",
            f"{each.date[:10]}, {each.commit}",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _order(result: Result) -> tuple[int, str]:
    numbers = [int(each.removeprefix("F")) for each in result.faults]
    return min(numbers, default=0), result.name


def _missing(found: Sequence[Result]) -> list[str]:
    shown = {fault for each in found for fault in each.faults}
    missing = {fault: about for fault, about in FAULTS.items() if fault not in shown}
    if not missing:
        return ["Every fault of the list has a result."]
    return [
        f"No result stands for {len(missing)} of the {len(FAULTS)} faults of the list:",
        "",
        *(f"- {fault}: {about}" for fault, about in missing.items()),
    ]


def _pictures(found: Sequence[Result]) -> list[str]:
    shown = [each for each in sorted(found, key=_order) if _has_picture(each)]
    lines = []
    for each in shown:
        path = PICTURE.format(name=each.name)
        lines += ["", f"**{each.name}**: {each.fault}.", "", f"![Jobs a second]({'../' + path})"]
    return lines


def _has_picture(result: Result) -> bool:
    return len(result.phases) > 1 and any(each.get("rates") for each in result.phases)


def picture(result: Result) -> str:
    """Throughput over the phases of a scenario, as SVG."""
    total_s = sum(each["seconds"] for each in result.phases) or 1.0
    most = max((rate for each in result.phases for rate in each["rates"]), default=0) or 1.0
    top = most * 1.08
    x_of = (_WIDTH - _LEFT - _RIGHT) / total_s
    y_of = (_HEIGHT - _TOP - _BOTTOM) / top
    floor = _HEIGHT - _BOTTOM
    shades, points, began = [], [], 0.0
    for phase in result.phases:
        left = _LEFT + began * x_of
        shades += _shade(phase, left, phase["seconds"] * x_of, floor)
        for number, rate in enumerate(phase["rates"]):
            middle = began + (number + 0.5) * phase["window_s"]
            points.append(f"{_LEFT + middle * x_of:.1f},{floor - rate * y_of:.1f}")
        began += phase["seconds"]
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
                'font-family="sans-serif" font-size="12" fill="#333">'
            ),
            f"<title>{escape(result.name)}: jobs completed a second</title>",
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
            *shades,
            *_baseline(result.phases, y_of, floor),
            *_axes(total_s, most, x_of, y_of, floor),
            (
                f'<polyline points="{" ".join(points)}" fill="none" stroke="#1f4e79" '
                'stroke-width="1.5"/>'
            ),
            "</svg>",
            "",
        ]
    )


def _shade(phase: Mapping[str, Any], left: float, width: float, floor: int) -> list[str]:
    shade = _SHADES.get(phase["name"], _PLAIN)
    drawn = [
        (
            f'<rect x="{left:.1f}" y="{_TOP}" width="{width:.1f}" height="{floor - _TOP}" '
            f'fill="{shade}" stroke="#ffffff"/>'
        )
    ]
    if width >= _LEAST_LABEL:
        drawn.append(
            f'<text x="{left + width / 2:.1f}" y="{_TOP - 8}" text-anchor="middle">'
            f"{escape(str(phase['name']))}</text>"
        )
    return drawn


def _baseline(phases: Sequence[Mapping[str, Any]], y_of: float, floor: int) -> list[str]:
    rates = [each["rate"] for each in phases if each["name"] == "baseline"]
    if not rates:
        return []
    y = floor - rates[0] * y_of
    return [
        (
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#888" '
            'stroke-dasharray="5 4"/>'
        )
    ]


def _axes(total_s: float, most: float, x_of: float, y_of: float, floor: int) -> list[str]:
    drawn = [
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">seconds</text>',
        '<text x="4" y="14">jobs a second</text>',
    ]
    for value in _ticks(most):
        y = floor - value * y_of
        drawn.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in _ticks(total_s):
        x = _LEFT + value * x_of
        drawn.append(f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{value:g}</text>')
    return drawn


def _ticks(most: float) -> list[float]:
    """From 0 on, four to ten round values."""
    step = 1.0
    while most / step > 10:  # noqa: PLR2004  more would run into each other
        step *= 2.5 if str(step)[0] == "2" else 2
    return [number * step for number in range(int(most / step) + 1)]
