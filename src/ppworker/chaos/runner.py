"""The model of the kit: takes its time, and leaves a marker of each job that it really ran."""

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID, uuid4

import psycopg

from ppworker.errors import Invalid, RunnerError, RunnerUnavailable
from ppworker.runners.base import RawAnswer, RunnerInput, RunnerSpec

PATH = "ppworker.chaos.runner:ChaosRunner"
DOWN_PATH = "ppworker.chaos.runner:DownChaosRunner"
MARKERS = "CHAOS_MARKERS"
"""Environment variable that names the database for markers, as psycopg takes it. Not one of
ppworker's own: those are kept from models in processes of their own."""
LABELS = 10
_MARK_S = 120.0
"""Seconds for which a marker is tried: a server that is away comes back in a scenario."""
_AGAIN_S = 0.2
_MARK = """
INSERT INTO chaos_markers (job, run, pid)
SELECT unnest(%s::uuid[]), %s, %s ON CONFLICT DO NOTHING
"""


class ChaosRunner:
    """In the worker itself: one class label per item, after a sleep that depends on the job.

    Markers go over a connection of its own, autocommit, past everything that the kit breaks
    between workers and PostgreSQL. One is written before the job's answer is given, and waits for
    PostgreSQL where that is away: a completed job without one is proof of a fault.

    Args:
        least_s: shortest sleep of a job.
        most_s: longest, but for the slow ones.
        slow_share: share of the jobs that are slow.
        slow_s: their sleep.
    """

    spec = RunnerSpec(
        tasks=("classification",), reads="text", max_batch=1000, isolated=False, thread_safe=True
    )

    def __init__(
        self,
        least_s: float = 0.005,
        most_s: float = 0.05,
        slow_share: float = 0.01,
        slow_s: float = 2.0,
    ) -> None:
        if not 0 <= least_s <= most_s:
            raise Invalid("must be from 0 to most_s", field="runner_config.least_s")
        self._least_s, self._most_s = least_s, most_s
        self._slow_share, self._slow_s = slow_share, slow_s
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None

    def load(self) -> None:
        """Make sure that there is a place for markers."""
        if not os.environ.get(MARKERS):
            raise RunnerUnavailable(f"{MARKERS} is not set: this runner is for `ppworker chaos`")

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        """Leave markers, sleep, answer."""
        self._mark([UUID(each.key) for each in inputs])
        time.sleep(sum(self.seconds(UUID(each.key)) for each in inputs))
        return [_answer(each) for each in inputs]

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._disconnect()

    def seconds(self, job: UUID) -> float:
        """How long a job takes, the same each time it runs."""
        number = hash(job.int) % 1_000_003 / 1_000_003
        if number < self._slow_share:
            return self._slow_s
        return self._least_s + (self._most_s - self._least_s) * number

    def _mark(self, jobs: Sequence[UUID]) -> None:
        run = uuid4()  # the same in each try: a try whose answer was lost counts once
        give_up = time.monotonic() + _MARK_S
        while True:
            try:
                with self._lock:
                    self._connected().execute(_MARK, [list(jobs), run, os.getpid()])
            except psycopg.OperationalError as error:
                with self._lock:
                    self._disconnect()
                if time.monotonic() > give_up:
                    raise RunnerUnavailable(f"markers cannot be written: {error}") from error
                time.sleep(_AGAIN_S)
            else:
                return

    def _connected(self) -> psycopg.Connection[tuple[object, ...]]:
        if self._connection is None:
            self._connection = psycopg.connect(
                os.environ[MARKERS], autocommit=True, connect_timeout=5,
                application_name="chaos markers",
            )  # fmt: skip
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class DownChaosRunner(ChaosRunner):
    """One whose model is away, as behind a server that answers 503, while a file is there.

    Args:
        down: path of that file.
        least_s: as of ``ChaosRunner``, like the others.
        most_s: likewise.
        slow_share: likewise.
    """

    def __init__(
        self,
        down: str,
        least_s: float = 0.005,
        most_s: float = 0.05,
        slow_share: float = 0.0,
    ) -> None:
        super().__init__(least_s, most_s, slow_share)
        self._down = Path(down)

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        """Answer, or fail for each input."""
        if not self._down.exists():
            return super().predict(inputs)
        return [RunnerUnavailable("the model's server answered 503") for _ in inputs]


def _answer(given: RunnerInput) -> RawAnswer:
    number = UUID(given.key).int
    prediction = {"label": f"label {number % LABELS}", "score": number % 101 / 100}
    return RawAnswer(raw={"predictions": [prediction], "pid": os.getpid()}, model_version="chaos-1")
