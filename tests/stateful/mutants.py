"""Proves that the histories would tell: each listed fault of the code must make them fail.

A mutant is one edit of a copy of src; the test runs on the copy with a fixed seed and budget, and
the first failure ends it. `make mutants` runs all, `make mutants ARGS="-k fence"` some.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ppworker import embedded
from stateful.mutations import HISTORIES, MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
BUDGET = {"PPWORKER_TEST_HISTORIES": "400", "PPWORKER_TEST_HISTORY_STEPS": "60"}
_HISTORY = "state.teardown()"
"""Stands at the end of a printed history, and in no other failure."""
_LIMIT_S = 900
_SIDE_BY_SIDE = 2


_stopped = threading.Event()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a mutant."""

    mutant: Mutant
    is_caught: bool
    seconds: float
    words: str
    """What the failing test said last."""


def main() -> int:
    """Run the mutants that were asked for; 1 when one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-k", default="", help="only mutants whose name holds this")
    parser.add_argument("--seed", default="1", help="of the histories")
    parser.add_argument("--src", type=Path, default=ROOT / "src", help="the code to be copied")
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _stopped.set())  # the tests end first, then the server
    chosen = [mutant for mutant in MUTANTS if given.k in mutant.name]
    with tempfile.TemporaryDirectory(prefix="ppworker-mutants-") as folder:
        place = Path(folder)
        with (
            embedded.acquire(place / "servers") as servers,
            ThreadPoolExecutor(_SIDE_BY_SIDE) as pool,
        ):
            tried = [
                pool.submit(run, mutant, place / str(number), servers.database_url, given)
                for number, mutant in enumerate(chosen)
            ]
            verdicts = []
            for each in tried:
                verdict = each.result()
                verdicts.append(verdict)
                word = "caught" if verdict.is_caught else "SURVIVES"
                print(
                    f"{word:8}  {verdict.seconds:5.0f} s  {verdict.mutant.name}: {verdict.words}",
                    flush=True,
                )
    caught = sum(verdict.is_caught for verdict in verdicts)
    print(f"{caught} of {len(verdicts)} mutants are caught")
    return 0 if caught == len(verdicts) else 1


def run(mutant: Mutant, folder: Path, database_url: str, given: argparse.Namespace) -> Verdict:
    """Apply a mutant to a copy of src, and run the test that must fail."""
    if _stopped.is_set():
        raise SystemExit("stopped")
    shutil.copytree(given.src, folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    mutant.apply(folder / "src" / "ppworker")
    began = time.monotonic()
    try:
        with subprocess.Popen(
            [
                sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:randomly",
                "-p", "no:cacheprovider", f"--hypothesis-seed={given.seed}", *mutant.tests,
            ],
            cwd=ROOT,
            env={
                **os.environ, **BUDGET,
                "PYTHONPATH": str(folder / "src"),
                "PPWORKER_TEST_DATABASE_URL": database_url,
                "PPWORKER_TEST_SHRINK": "0",
            },
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        ) as process:  # fmt: skip
            said = _ended(process)
            code = process.returncode
    finally:
        shutil.rmtree(folder)
    # What cannot be imported or run fails too, and proves nothing.
    is_caught = code == 1 and (_HISTORY in said or mutant.tests != HISTORIES)
    return Verdict(
        mutant=mutant,
        is_caught=is_caught,
        seconds=time.monotonic() - began,
        words=_words(said) if code else "every test passed",
    )


def _ended(process: subprocess.Popen[str]) -> str:
    """What a test says until it ends, its time is over, or somebody ends this program."""
    until = time.monotonic() + _LIMIT_S
    while True:
        try:
            return process.communicate(timeout=1)[0]
        except subprocess.TimeoutExpired:
            if _stopped.is_set() or time.monotonic() > until:
                process.terminate()


def _words(said: str) -> str:
    """The line of a report that names the error."""
    errors = [line.strip("E| ") for line in said.splitlines() if line.startswith(("E  ", "  | E"))]
    return (errors or said.splitlines()[-1:] or [""])[0][:160]


if __name__ == "__main__":
    sys.exit(main())
