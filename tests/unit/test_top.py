"""A frame of ``top`` fits its room, says what it leaves out, and shows names as data."""

import io
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ppworker.cli import frame as frames
from ppworker.cli import program
from ppworker.cli.frame import Frame, Room, draw
from ppworker.domain.circuit import State
from ppworker.store.activity import Activity, OperationStatus
from ppworker.store.overview import Count, ProcessorStatus, WorkerStatus

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def processor(name="kind", **values):
    given: dict[str, Any] = {
        "id": UUID(int=hash(name) % 2**64), "dataset": "letters", "name": name, "runner": "magika",
        "enabled": True, "paused_by_operator": False, "circuit": State.CLOSED,
        "circuit_until": None, "circuit_reason": "",
    }  # fmt: skip
    return ProcessorStatus(**given | values)


def worker(pid=1, **values):
    given: dict[str, Any] = {
        "id": UUID(int=pid), "host": "host", "pid": pid, "version": "0.1.0", "slots": 2,
        "draining": False, "started_at": NOW, "seen_s": 1.0, "leases": 0,
    }  # fmt: skip
    return WorkerStatus(**given | values)


def operation(n=1, **values):
    given: dict[str, Any] = {
        "id": UUID(int=n), "kind": "apply_inferences", "dataset": "letters", "status": "processing",
        "done": 250, "total": 1000, "attempts": 1, "age_s": 12.0,
    }  # fmt: skip
    return OperationStatus(**given | values)


def activity(**values):
    given: dict[str, Any] = {
        "at": NOW, "processors": [processor()], "failed_is_bound": False, "workers": [worker()],
        "ended": {}, "finished": {}, "operations": [], "operations_live": 0,
        "deltas": Count(rows=0, is_bound=False), "oldest_delta_s": None,
        "dead_letters": Count(rows=0, is_bound=False),
    }  # fmt: skip
    return Activity(**given | values)


def drawn(now, room=None, **about):
    """What a terminal of that size would show, line by line."""
    room = room or Room(width=160, height=50)
    out = io.StringIO()
    console = Console(file=out, width=room.width, height=room.height, color_system=None)
    console.print(draw(Frame(activity=now, source="host/db", **about), room))
    return out.getvalue().splitlines()


def row_of(lines, word):
    (found,) = [line for line in lines if word in line]
    return " ".join(found.split())


CROWD = activity(
    processors=[processor(f"processor {n:02} 字" * 4, due=n, failed=n) for n in range(40)],
    workers=[worker(n, leases=n, seen_s=n * 10.0) for n in range(1, 30)],
    operations=[operation(n) for n in range(1, 9)],
    operations_live=120,
    ended={"finished": 1234.5, "transient_error": 3.0, "exhausted": 0.2},
    deltas=Count(rows=12, is_bound=False),
    oldest_delta_s=3.0,
    dead_letters=Count(rows=100_000, is_bound=True),
)


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize("width", [20, 44, 60, 79, 80, 100, 160, 300])
@pytest.mark.parametrize("height", [8, 12, 18, 24, 50, 200])
def test_a_frame_is_never_wider_nor_higher_than_its_room(width, height, is_plain):
    room = Room(width=width, height=height, is_plain=is_plain)
    lines = drawn(CROWD, room, footer="q quits", rates=(1.0, 2.0, 3.0), notice="away " * 99)
    assert len(lines) <= height
    assert max(Console().measure(line).maximum for line in lines if line) <= width
    if is_plain:
        assert all(ord(letter) < 128 or letter == "字" for line in lines for letter in line)


def test_every_section_has_room_at_80_by_24_and_says_what_it_leaves_out():
    lines = drawn(CROWD, Room(width=80, height=24), footer="q quits")
    assert len(lines) == 24
    heads = [
        n for n, line in enumerate(lines) if line.startswith(("post-pr", "operation", "worker "))
    ]
    more = [(n, int(line.split()[1])) for n, line in enumerate(lines) if line.startswith("and ")]
    assert len(heads) == len(more) == 3
    for head, (last, hidden), total in zip(heads, more, [40, 120, 29], strict=True):
        assert last > head
        assert last - head - 1 + hidden == total
    assert lines[-1] == "q quits"


def test_without_a_height_every_row_is_there_in_full():
    lines = drawn(CROWD, Room(width=10_000))
    assert sum("processor 39 字processor 39 字" in line for line in lines) == 1
    assert sum("host/" in line for line in lines) == 29 + 1
    assert "and 112 more" in lines  # operations that were not read at all


def test_totals_leave_out_what_a_pause_holds():
    now = activity(
        processors=[
            processor("a", due=1000, oldest_due_s=41.0, processing=7, waiting=5, scheduled=3),
            processor("b", due=20, oldest_due_s=9999.0, paused_by_operator=True),
        ]
    )
    due = drawn(now)[1]
    assert due == "due 1,000 (oldest 41 s)  in flight 7  held 20  waiting 5  scheduled 3"


def test_failures_are_told_by_reason_the_most_frequent_first():
    now = activity(
        processors=[
            processor("a", failed=5, reasons={"exhausted": 4, "timeout": 1}),
            processor("b", failed=7, reasons={"timeout": 7}),
        ]
    )
    assert drawn(now)[3] == "failed 12: timeout 8, exhausted 4"


def test_states_are_words_not_only_colours():
    now = activity(
        processors=[
            processor("p-on"),
            processor("p-off", enabled=False),
            processor("p-held", paused_by_operator=True),
            processor("p-rests", circuit=State.OPEN, circuit_until=NOW + timedelta(seconds=30)),
            processor("p-tries", circuit=State.HALF_OPEN, circuit_until=NOW),
        ],
        workers=[worker(1), worker(2, draining=True), worker(3, seen_s=61.0, draining=True)],
    )
    lines = drawn(now)
    assert row_of(lines, "p-on").startswith("letters/p-on on ")
    assert row_of(lines, "p-off").startswith("letters/p-off disabled ")
    assert row_of(lines, "p-held").startswith("letters/p-held paused ")
    assert row_of(lines, "p-rests").startswith("letters/p-rests paused by failures 30 s ")
    assert row_of(lines, "p-tries").startswith("letters/p-tries probing ")
    narrow = drawn(now, Room(width=60, height=50))
    assert row_of(narrow, "p-rests").startswith("p-rests failures 30 s ")
    assert row_of(lines, "host/1").startswith("host/1 live ")
    assert row_of(lines, "host/2").startswith("host/2 draining ")
    assert row_of(lines, "host/3").startswith("host/3 lost ")


def test_who_has_most_to_do_and_who_is_lost_come_first():
    now = activity(
        processors=[
            processor("a"),
            processor("b", due=9),
            processor("c", processing=5000),
            processor("d", due=90_000, paused_by_operator=True),
            processor("e", failed=1),
            processor("f", due=7, scheduled=100),
        ],
        workers=[worker(1), worker(2, leases=3), worker(3, seen_s=99.0)],
    )
    lines = drawn(now)
    names = [line.split()[0] for line in lines if line.startswith(("letters/", "host/"))]
    busy = ["letters/c", "letters/f", "letters/b", "letters/d", "letters/e", "letters/a"]
    assert names == [*busy, "host/3", "host/2", "host/1"]


def test_operations_show_their_progress_where_it_is_known():
    now = activity(
        operations=[operation(1), operation(2, total=None, done=77), operation(3, total=0, done=0)],
        operations_live=3,
    )
    rows = [" ".join(line.split()) for line in drawn(now) if line.startswith("apply_inferences")]
    assert "███░░░░░░░░░ 25 % 250 of 1,000" in rows[0]
    assert " 77 77 " in rows[1]
    assert " 0 % 0 of 0 " in rows[2]
    plain = drawn(now, Room(width=160, height=50, is_plain=True))
    assert any("###.........  25 %" in line for line in plain)


def test_nothing_at_all_is_said_too():
    lines = drawn(activity(processors=[], workers=[]))
    assert "no post-processors" in lines
    assert "no workers" in lines


def test_a_notice_stands_above_the_last_figures():
    lines = drawn(activity(processors=[processor(due=3)]), notice="the database is away")
    assert lines[1] == "the database is away"
    assert lines[2].startswith("due 3")
    assert drawn(None, notice="the database is away")[1] == "the database is away"


def test_a_low_terminal_drops_whole_sections_the_workers_last():
    lines = drawn(CROWD, Room(width=80, height=16))
    assert not any(line.startswith("operation") for line in lines)
    assert any(line.startswith("worker") for line in lines)
    lines = drawn(CROWD, Room(width=80, height=11))
    assert not any(line.startswith("worker") for line in lines)
    assert any(line.startswith("post-processor") for line in lines)


@given(st.text(max_size=30))
def test_names_neither_style_nor_move_the_cursor(name):
    hostile = f"{name}\x1b[2J\n[bold]x[/bold]\u202e"
    now = activity(
        processors=[processor(hostile, failed=1, reasons={hostile: 1})],
        workers=[worker(host=hostile)],
        operations=[operation(dataset=hostile, kind=hostile)],
        operations_live=1,
    )
    lines = drawn(now, Room(width=400, height=50), notice=hostile)
    shown = "".join(lines)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert shown.count(r"\x1b[2J\n[bold]x[/bold]\u202e") == 6
    assert len(lines) == 1 + 1 + 4 + 3 * 3


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0.0 s"), (0.42, "0.4 s"), (41, "41 s"), (119, "119 s"), (120, "2 min"),
     (7200, "2 h"), (200_000, "2 d")],
)  # fmt: skip
def test_ages_are_short_and_never_negative(seconds, shown):
    assert frames._age(seconds) == shown


@pytest.mark.parametrize("interval", ["0.1", "nan", "inf", "-1", "4000"])
def test_an_interval_out_of_range_is_refused(interval, capsys):
    assert program._guarded(["top", "--interval", interval]) == 2
    said = capsys.readouterr().err
    assert said == "ppworker: --interval: must be from 0.2 to 3600 seconds\n"


def test_rates_are_drawn_as_bars():
    assert frames._spark([]) == frames._spark([0.0]) == ""
    assert frames._spark([0.0, 4.0, 8.0]) == "▁▅█"
