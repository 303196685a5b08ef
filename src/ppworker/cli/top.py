"""``top``: the state of all jobs, live, read from the database again and again."""

import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.live import Live

from ppworker.cli import render
from ppworker.cli.frame import Frame, Room, draw
from ppworker.cli.session import Call, Reached, command, configure_logging, connect, reach
from ppworker.cli.status import totals
from ppworker.errors import Invalid, StoreUnavailable
from ppworker.store.activity import Activity, read_activity
from ppworker.store.db import Database

_LEAST_S, _MOST_S = 0.2, 3600.0
_TICK_S = 0.2
"""Seconds between looks at keys and at the size of the terminal."""
_TIMEOUT_S = 10.0
"""Seconds that one question to the database may take."""
_SILENT_S = 3.0
"""Seconds that an answer may take before its absence is said."""
_SHARE = 0.1
"""Share of its time that this view may keep the database busy."""
_PIPE_WIDTH = 10_000
_SUSPEND = "\x1a"
_LEAVE = {"q", "Q", _SUSPEND}
_MOST_RATES = 30

Interval = Annotated[
    float, typer.Option("--interval", metavar="S", help="Seconds from frame to frame.")
]
Once = Annotated[bool, typer.Option("--once", help="Print one frame and end.")]


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add the command to the program."""
    command(root, name, summary=summary)(top)


def top(call: Call, *, interval: Interval = 2.0, once: Once = False) -> None:
    """Watch the state of all jobs, live; q ends it. Without a terminal: one frame."""
    if not _LEAST_S <= interval <= _MOST_S:
        raise Invalid(f"must be from {_LEAST_S} to {_MOST_S:.0f} seconds", field="--interval")
    with reach(call) as reached, connect(reached, migrate=False) as db:
        configure_logging(reached.settings)
        view = _View(db, _source(reached), interval)
        with suppress(KeyboardInterrupt):  # the usual way to leave
            if call.as_json:
                _stream(view, once=once)
            elif once or not _is_watched():
                _print_one(view)
            else:
                _watch(view)


def _source(reached: Reached) -> str:
    """Where the figures come from, for a person; never a password."""
    url = reached.settings.database_url
    if reached.servers is not None or url is None:
        return str(reached.settings.data_dir)
    parts = urlsplit(url.get_secret_value())
    return f"{parts.hostname or 'local'}{parts.path}"


def _is_watched() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in {"dumb", "unknown"}


@dataclass(frozen=True, slots=True)
class _Read:
    """What one look at the database brought."""

    activity: Activity | None
    error: str = ""


class _View:
    """Reads the activity at its pace, in a thread of its own while somebody watches.

    A database that hangs must not freeze the keys; one that is away is asked again.
    """

    def __init__(self, db: Database, source: str, interval_s: float) -> None:
        self.source = source
        self.interval_s = interval_s
        self._db = db
        self._latest = _Read(None)
        self._answered_at = time.monotonic()
        self._due_at = self._answered_at + _SILENT_S
        self._failure: Exception | None = None
        self._is_wanted = threading.Event()
        self._rates: deque[float] = deque(maxlen=_MOST_RATES)
        self.frames = 0

    def read(self) -> tuple[_Read, float]:
        """Look once; also the seconds to wait before the next look."""
        began = time.monotonic()
        try:
            with self._db.begin() as tx:
                found = _Read(read_activity(tx, timeout_s=_TIMEOUT_S))
        except StoreUnavailable as error:
            return _Read(None, str(error)), self.interval_s
        took = time.monotonic() - began
        return found, max(self.interval_s - took, took * (1 / _SHARE - 1))

    def start(self) -> None:
        """Begin to read in the background."""
        threading.Thread(target=self._run, name="top", daemon=True).start()

    def refresh(self) -> None:
        """Read now."""
        self._is_wanted.set()

    def frame(self) -> Frame:
        """What to draw now.

        Raises:
            Exception: whatever ended the reading, but a database that is away.
        """
        if self._failure is not None:
            raise self._failure
        return Frame(
            activity=self._latest.activity,
            source=self.source,
            notice=self._notice(),
            rates=tuple(self._rates),
            footer=f"every {self.interval_s:g} s   q quits, any other key refreshes",
        )

    def _notice(self) -> str:
        now = time.monotonic()
        if not self._latest.error and now < self._due_at:
            return ""
        reason = f": {self._latest.error}" if self._latest.error else ""
        return f"no answer from the database for {now - self._answered_at:.0f} s{reason}"

    def _run(self) -> None:
        try:
            while True:
                self._is_wanted.clear()
                found, wait_s = self.read()
                if found.activity is None:  # keep the last figures, and say how old they are
                    found = _Read(self._latest.activity, found.error)
                else:
                    self._answered_at = time.monotonic()
                    self._rates.append(found.activity.ended.get("finished", 0.0))
                self._due_at = time.monotonic() + wait_s + _SILENT_S
                self._latest = found
                self.frames += 1
                self._is_wanted.wait(wait_s)
        except Exception as error:  # noqa: BLE001  the main thread says what it was
            self._failure = error


def _stream(view: _View, *, once: bool) -> None:
    """A line of JSON per frame, until interrupted."""
    while True:
        found, wait_s = view.read()
        if found.activity is None:
            render.as_json({"is_reachable": False, "error": found.error})
        else:
            render.as_json(_for_programs(found.activity))
        if once:
            return _fail_if_away(found)
        time.sleep(wait_s)


def _print_one(view: _View) -> None:
    found, _ = view.read()
    _fail_if_away(found)
    # A pipe has no width: a line there is a row, so that grep and awk find it whole.
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    console = Console(width=width, highlight=False)
    room = Room(width=console.width, is_plain=not _is_unicode(console))
    frame = Frame(activity=found.activity, source=view.source)
    console.print(draw(frame, room), soft_wrap=False)


def _fail_if_away(found: _Read) -> None:
    if found.activity is None:
        raise StoreUnavailable(found.error)


def _watch(view: _View) -> None:
    """Draw until q; Ctrl-Z gives the terminal back until the program is continued."""
    view.start()
    while _drawn_until_left(view) == _SUSPEND:
        os.kill(os.getpid(), signal.SIGTSTP)


def _drawn_until_left(view: _View) -> str:
    console = Console(highlight=False)
    with _keys() as pressed, _screen(console) as live:
        drawn: object = None
        while True:
            size = console.size
            room = Room(width=size.width, height=size.height, is_plain=not _is_unicode(console))
            frame = view.frame()
            if (state := (view.frames, frame.notice, room)) != drawn:
                live.update(draw(frame, room), refresh=True)
                drawn = state
            key = pressed(_TICK_S)
            if key in _LEAVE:
                return key
            if key:
                view.refresh()


def _is_unicode(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")


@contextmanager
def _screen(console: Console) -> Iterator[Live]:
    """A screen of its own, which vanishes at the end and while the program is suspended."""
    live = Live(
        console=console, screen=True, auto_refresh=False, vertical_overflow="crop",
        redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip
    with live:
        yield live


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Waits for a key so many seconds; where nobody can press one it only waits."""

    def wait(seconds: float) -> str:
        ready, _, _ = select.select([fd], [], [], seconds)
        if not ready:
            return ""
        return os.read(fd, 1).decode(errors="replace") or "q"  # nothing to read: it hung up

    def only_wait(seconds: float) -> str:
        time.sleep(seconds)
        return ""

    if not sys.stdin.isatty():
        yield only_wait
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    now = termios.tcgetattr(fd)
    now[6][termios.VSUSP] = b"\0"  # Ctrl-Z comes as a key, so that the screen is left first
    termios.tcsetattr(fd, termios.TCSADRAIN, now)
    try:
        yield wait
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _for_programs(now: Activity) -> dict[str, Any]:
    return {
        "is_reachable": True,
        "at": now.at,
        **totals(now.processors, failed_is_bound=now.failed_is_bound),
        "ended_per_s": now.ended,
        "post_processors": [
            render.plain(each)
            | {"pending": each.pending, "completed_per_s": now.finished.get(each.id, 0.0)}
            for each in now.processors
        ],
        "workers": [render.plain(each) | {"state": each.state} for each in now.workers],
        "stats": {
            "unfolded_deltas": now.deltas.rows,
            "is_at_least": now.deltas.is_bound,
            "oldest_s": now.oldest_delta_s,
        },
        "operations": [render.plain(each) | {"percent": each.percent} for each in now.operations],
        "operations_live": now.operations_live,
        "dead_letters": now.dead_letters.rows,
    }
