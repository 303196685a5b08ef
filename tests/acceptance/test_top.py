"""``ppworker top`` as a person runs it: in a terminal, in a pipe, while the database comes and goes."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from conftest import execute
from factories import World

PROGRAM = str(Path(sys.executable).parent / "ppworker")
HOME, LEFT = b"\x1b[H", b"\x1b[?1049l"
COLOUR = re.compile(rb"\x1b\[(?:\d+;)*[34]\d[;m]")


# A session of its own with the terminal as its controlling one, so that Ctrl-C reaches it.
IN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def _own_size(environment: Mapping[str, str]) -> dict[str, str]:
    """Without the size that readline put into it, which would hold whatever the terminal says."""
    return {name: v for name, v in environment.items() if name not in {"COLUMNS", "LINES"}}


class Terminal:
    """A terminal of some size in which a program runs."""

    def __init__(self, url: str, *arguments: str, columns: int, lines: int, **environment: str):
        self.shown = b""
        self._fd, inner = pty.openpty()
        self.resize(columns, lines)
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, PROGRAM, "top", *arguments],
            env=_own_size(os.environ)
            | {"PPWORKER_DATABASE_URL": url, "TERM": "xterm-256color"}
            | environment,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
        )
        os.close(inner)

    def resize(self, columns: int, lines: int) -> None:
        self._lines = lines
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def look(self, timeout: float = 0.1) -> bool:
        """Take in what was drawn since; False when the terminal is closed."""
        if not select.select([self._fd], [], [], timeout)[0]:
            return True
        try:
            self.shown += os.read(self._fd, 65536)
        except OSError:
            return False
        return True

    def screen(self) -> list[str]:
        """Lines of the last frame that was drawn in full."""
        frames = self.shown.split(HOME)
        text = re.sub(rb"\x1b\[[?\d;]*[a-zA-Z]", b"", frames[-1] if len(frames) > 1 else b"")
        return [line.rstrip() for line in text.decode(errors="replace").split("\r\n")]

    def wait_for(self, word: str, *, gone: bool = False, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while True:
            lines = self.screen()
            is_whole = len(lines) == self._lines and any("q quits" in line for line in lines)
            if is_whole and any(word in line for line in lines) is not gone:
                return
            assert self.look(), f"it ended: {self.shown[-2000:]!r}"
            assert time.monotonic() < until, "\n".join(self.screen())

    def end(self, seconds: float = 20) -> int:
        """Its exit code, once it has ended."""
        until = time.monotonic() + seconds
        while self.look() and self.process.poll() is None:
            assert time.monotonic() < until, "it does not end"
        return self.process.wait(seconds)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


@contextmanager
def terminal(
    url: str, *arguments: str, columns: int = 80, lines: int = 24, **environment: str
) -> Iterator[Terminal]:
    opened = Terminal(url, *arguments, columns=columns, lines=lines, **environment)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def running(url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The program without a terminal."""
    with subprocess.Popen(
        [PROGRAM, "top", *arguments],
        env=os.environ | {"PPWORKER_DATABASE_URL": url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def crowd(world: World) -> World:
    """More post-processors than a low terminal has lines, one of them at work."""
    for n in range(30):
        world.processor(f"processor {n:02} " + "with a long name " * 9)
    world.add("one", "two")
    return world


def database_of(url: str) -> str:
    return str(sa.make_url(url).database)


def test_it_follows_the_database_fits_its_terminal_and_leaves_it_clean(
    crowd: World, database_url: str
) -> None:
    with terminal(database_url, "--interval", "0.2") as shown:
        shown.wait_for("due 60")
        shown.wait_for("no workers")
        lines = shown.screen()
        assert len(lines) == 24
        assert max(map(len, lines)) <= 80
        assert any(re.fullmatch(r"and \d+ more", line) for line in lines)
        crowd.add("three")
        shown.wait_for("due 90")
        shown.resize(120, 50)
        shown.wait_for("scheduled")
        assert len(shown.screen()) == 50
        shown.press("q")
        assert shown.end() == 0
        assert LEFT in shown.shown[-200:]


def test_it_outlives_an_absence_of_the_database(
    crowd: World, database_url: str, server_url: str
) -> None:
    name = database_of(database_url)
    with terminal(database_url, "--interval", "0.2") as shown:
        shown.wait_for("due 60")
        execute(server_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        execute(
            server_url,
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
        )
        shown.wait_for("no answer from the database for")
        assert any("due 60" in line for line in shown.screen()), "the last figures stay"
        execute(server_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        shown.wait_for("no answer from the database", gone=True)
        crowd.deps.db.engine.dispose()  # this test's own connections were ended too
        crowd.add("three")
        shown.wait_for("due 90")
        shown.process.send_signal(signal.SIGINT)
        assert shown.end() == 0


def test_a_database_that_hangs_is_said_and_does_not_hold_up_the_keys(
    crowd: World, database_url: str
) -> None:
    with terminal(database_url, "--interval", "0.2") as shown:
        shown.wait_for("due 60")
        with crowd.deps.db.begin() as tx:
            tx.execute(sa.text("LOCK TABLE workers IN ACCESS EXCLUSIVE MODE"))
            shown.wait_for("no answer from the database for")
            shown.press("q")
            assert shown.end(seconds=5) == 0


def test_ctrl_c_is_a_way_to_leave_and_no_color_is_honoured(crowd: World, database_url: str) -> None:
    with terminal(database_url, NO_COLOR="1") as plain, terminal(database_url) as coloured:
        for shown in (plain, coloured):
            shown.wait_for("due 60")
            shown.press("\x03")
            assert shown.end() == 0
        assert not COLOUR.search(plain.shown)
        assert COLOUR.search(coloured.shown)


def test_in_a_pipe_it_is_one_frame_with_whole_names(crowd: World, database_url: str) -> None:
    with running(database_url) as once:
        out, err = once.communicate(timeout=60)
    assert (once.returncode, err) == (0, "")
    assert "\x1b" not in out
    rows = [line for line in out.splitlines() if "/processor" in line]
    assert len(rows) == 30
    assert all("with a long name " * 9 in row for row in rows)


def test_json_is_a_line_for_every_frame(crowd: World, database_url: str) -> None:
    with running(database_url, "--json", "--interval", "0.2") as stream:
        assert stream.stdout is not None
        first, second = (json.loads(stream.stdout.readline()) for _ in range(2))
        stream.send_signal(signal.SIGINT)
        _, err = stream.communicate(timeout=30)
    assert first["is_reachable"] is True
    assert first["at"] < second["at"]
    assert (first["due"], first["in_flight"], first["workers"]) == (60, 0, [])
    assert {each["due"] for each in first["post_processors"]} == {2}
    assert (stream.returncode, err) == (0, "")
