"""A serving program as people start it, and requests to it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

PROGRAM = [sys.executable, "-m", "ppworker"]


def environment(**more: str) -> dict[str, str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith("PPWORKER_")}
    return own | more


def run(*arguments: str, **more: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command that ends by itself."""
    done = subprocess.run(
        [*PROGRAM, *arguments],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


class Running:
    """A serving command with ``--json`` and a port of its own."""

    def __init__(self, data_dir: Path, command: str, *options: str, **more: str) -> None:
        self.data_dir = data_dir
        self._log = data_dir.with_suffix(".log").open("w")
        self.process = subprocess.Popen(
            [*PROGRAM, command, "--json", "--data-dir", str(data_dir), *options],
            env=environment(**more),
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self.process.stdout is not None
        self._output = self.process.stdout
        line = self._output.readline()
        assert line, data_dir.with_suffix(".log").read_text()
        self.ready = json.loads(line)

    def ask(self, path: str, body: Any = None, *, key: str | None = None) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        request = urllib.request.Request(  # noqa: S310  our own address
            f"{self.ready['address']}/api/v1{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {key or self.ready['key']}",
                "Content-Type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(60)
        finally:
            self._output.close()
            self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def eventually(check: Any, within_s: float = 30.0) -> Any:
    until = time.monotonic() + within_s
    while not (found := check()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)
    return found
