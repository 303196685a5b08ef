"""A runner that takes any option, for tests of what is shown of options."""

from typing import Any

from ppworker.errors import RunnerError
from ppworker.runners.base import RawAnswer, RunnerInput, RunnerSpec


class TakesAnything:
    """Knows every option and does nothing with it."""

    spec = RunnerSpec(tasks=("classification",), reads="any")

    def __init__(self, **options: Any) -> None:
        self.options = options

    def load(self) -> None: ...

    def predict(self, inputs: list[RunnerInput]) -> list[RawAnswer | RunnerError]:
        return [RawAnswer(raw={"predictions": []}) for _ in inputs]

    def close(self) -> None: ...
