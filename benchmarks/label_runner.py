"""The trivial model of the benchmark: one label out of ten, in the worker's own process."""

from collections.abc import Sequence
from uuid import UUID

from ppworker.errors import RunnerError
from ppworker.runners.base import RawAnswer, RunnerInput, RunnerSpec

PATH = "benchmarks.label_runner:LabelRunner"


class LabelRunner:
    """Answers at once, so that everything measured is the system around it."""

    spec = RunnerSpec(
        tasks=("classification",), reads="text", max_batch=1000, isolated=False, thread_safe=True
    )

    def load(self) -> None:
        """There is nothing to load."""

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        """A label and a score that depend on the job's id alone."""
        return [_answer(UUID(each.key).int) for each in inputs]

    def close(self) -> None:
        """There is nothing to give back."""


def _answer(number: int) -> RawAnswer:
    prediction = {"label": f"label{number % 10}", "score": number % 101 / 100}
    return RawAnswer(
        raw={"model": "trivial", "predictions": [prediction]}, model_version="trivial-1"
    )
