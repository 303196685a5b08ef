"""Runs the commands that stand in the documentation, as a reader would in a folder of their own."""

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image, ImageDraw

TOP = Path(__file__).parents[1]
PROGRAM = ".venv/bin/ppworker"
_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_READY = "ready; Ctrl-C"
_READY_S = 120
_COMMAND_S = 240
_STOP_S = 60


def blocks(page: str, language: str = "sh", *, below: str = "") -> list[str]:
    """Code blocks of a page in a language, or of one section of it."""
    text = (TOP / page).read_text(encoding="utf-8")
    if below:
        text = re.split(r"^## ", text.partition(f"\n## {below}\n")[2], flags=re.MULTILINE)[0]
    return [textwrap.dedent(body) for _, kind, body in _BLOCK.findall(text) if kind == language]


def commands(page: str, *, below: str = "") -> list[str]:
    """Lines of all shell blocks of a page, comments and empty lines left out."""
    lines = [line for block in blocks(page, below=below) for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def make_folder(folder: Path) -> None:
    """A reader's folder: a scanned letter, a text, a program."""
    folder.mkdir()
    letter = Image.new("RGB", (640, 120), "white")
    line = "100 Main Street, Springfield, IL 62701"
    ImageDraw.Draw(letter).text((20, 40), line, fill="black", font_size=28)
    letter.save(folder / "letter.png")
    (folder / "note.txt").write_text("Please write to 20 Oak Avenue, Denver, CO 80201 soon.\n")
    (folder / "sum.py").write_text("def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n")


class Reader:
    """A folder, ``ppworker up`` in it (or another command that serves), and a second terminal."""

    def __init__(self, folder: Path, serve: str = f"{PROGRAM} up", **environment: str) -> None:
        self.folder = folder
        self.log = folder / "up.log"
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PPWORKER_")
        } | environment
        # A reader's `.venv/bin` may be anywhere; here it is where these tests run.
        self._bin = str(Path(sys.executable).parent)
        self.environment["PATH"] = f"{self._bin}{os.pathsep}{self.environment['PATH']}"
        self._serve = serve
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, command: str) -> str:
        """Run one command of a page; its output. It must succeed."""
        done = subprocess.run(
            ["bash", "-euc", self._translated(command)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}\n{self.said()}"
        return done.stdout

    def said(self) -> str:
        """What the serving command has printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask the serving command to stop; its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(_STOP_S)

    def __enter__(self) -> Self:
        with self.log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                shlex.split(self._translated(self._serve)),
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        until = time.monotonic() + _READY_S
        while _READY not in self.said():
            if self._process.poll() is not None or time.monotonic() > until:
                self._process.kill()
                self._process.wait()
                raise AssertionError(f"{self._serve} did not get ready:\n{self.said()}")
            time.sleep(0.05)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self.stop()

    def _translated(self, command: str) -> str:
        return command.replace(PROGRAM, f"{self._bin}/ppworker")
