"""The operator's side of the demo: a data folder, ``ppworker up`` in it, and the other commands."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from demo_results import say
from ppworker import embedded

_MARK = ".ppworker-demo"
"""File by which a folder is known as one that a demo made and another demo may empty."""
_START_S = 120
_STOP_S = 60


class Operator:
    """``ppworker up`` as a process of its own, and a way to run the other commands beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exit_code: int | None = None
        self.ready_after_s = 0.0
        self._up: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        started = time.monotonic()
        say(f"$ ppworker up --processes 2 --threads 1 --port 0 --data-dir {self.folder}")
        with (self.folder / "up.log").open("w", encoding="utf-8") as log:
            self._up = subprocess.Popen(  # noqa: S603  our own program
                # Any free port: another demo, or the user's own, may run beside this one.
                self._argv(["up", "--processes", "2", "--threads", "1", "--port", "0", "--json"]),
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
            )
        try:
            self._wait_until_ready(self._up)
        except BaseException:
            self._stop(self._up)
            raise
        self.ready_after_s = time.monotonic() - started
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._up is not None:
            self._stop(self._up)

    def run(self, *arguments: str) -> Any:
        """Run a command as an operator would; its answer.

        Raises:
            SystemExit: it failed.
        """
        done = self._run(arguments)
        if done.returncode:
            raise SystemExit(f"that failed with exit code {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def succeeds(self, *arguments: str) -> bool:
        """Whether a command ends with exit code 0."""
        done = self._run(arguments)
        if done.returncode:
            say(done.stdout.strip(), done.stderr.strip())
        return done.returncode == 0

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        say(f"$ ppworker {' '.join(_quoted(each) for each in arguments)}")
        return subprocess.run(  # noqa: S603  our own program
            self._argv([*arguments, "--json"]),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
        )

    def _argv(self, arguments: Sequence[str]) -> list[str]:
        python = [sys.executable, "-m", "ppworker"]
        return [*python, *arguments, "--data-dir", str(self.folder)]

    def _wait_until_ready(self, up: subprocess.Popen[str]) -> None:
        """Wait for the line by which a program is told that everything runs."""
        assert up.stdout is not None  # noqa: S101  a pipe was asked for
        watchdog = threading.Timer(_START_S, up.terminate)
        watchdog.start()
        try:
            line = up.stdout.readline()
        finally:
            watchdog.cancel()
        if not line or json.loads(line).get("event") != "ready":
            up.wait()
            log = (self.folder / "up.log").read_text(encoding="utf-8")
            raise SystemExit(f"`ppworker up` did not get ready:\n{log[-2000:]}")

    def _stop(self, up: subprocess.Popen[str]) -> None:
        """Stop it in order, even while an impatient person goes on pressing Ctrl-C."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            up.terminate()
            try:
                self.exit_code = up.wait(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                up.kill()
                self.exit_code = up.wait()
            if up.stdout is not None:
                up.stdout.close()
        finally:
            signal.signal(signal.SIGINT, before)


def empty_folder(folder: Path) -> None:
    """Empty the folder of an earlier demo, or make it.

    Raises:
        SystemExit: it holds something else, or another demo runs in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / _MARK).exists():
        raise SystemExit(f"{folder} holds something else than a demo: name another --data-dir")
    users = folder / "users.lock"
    if users.exists():
        with users.open("rb") as lock:
            _refuse_if_used(lock, folder)
    if any(folder.glob("*/postmaster.pid")):
        embedded.acquire(folder).close()  # a demo that was killed left its servers running
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    (folder / _MARK).write_text("ppworker's demo may empty this folder\n", encoding="utf-8")


def _refuse_if_used(lock: IO[bytes], folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"{folder} is in use: stop what runs in it") from None


def hide_servers_of_the_system(folder: Path) -> None:
    """Leave nothing on the PATH: everything that is needed came in wheels."""
    nothing = folder / "nothing-on-the-path"
    nothing.mkdir()
    os.environ["PATH"] = str(nothing)
    for name in [name for name in os.environ if name.startswith("PPWORKER_")]:
        del os.environ[name]


def _quoted(argument: str) -> str:
    return f"'{argument}'" if " " in argument else argument
