"""magika: classification of any file or text by its content, over two hundred types."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from ppworker.errors import FileMissing, RunnerError, UnreadableInput
from ppworker.runners import wire
from ppworker.runners.base import RawAnswer, RunnerInput, RunnerSpec


class MagikaRunner:
    """Answers one prediction, the type's short name such as ``png``, with its score.

    Beside it stand ``mime_type``, ``group`` and ``description`` of the type.
    """

    spec = RunnerSpec(
        tasks=("classification",), reads="any", needs=("magika",), extra="models", max_batch=64
    )

    def __init__(self) -> None:
        self._model: Any = None
        self._version = ""

    def load(self) -> None:
        """Load the network that comes in magika's package."""
        import magika  # noqa: PLC0415  reading the spec must not cost the library

        self._model = magika.Magika()
        self._version = f"magika {self._model.get_module_version()} {self._model.get_model_name()}"

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        """Answer one by one: magika is several times slower when it is given many at once."""
        return [self._answer(item) for item in inputs]

    def close(self) -> None:
        """Let the network go."""
        self._model = None

    def _answer(self, item: RunnerInput) -> RawAnswer | RunnerError:
        try:
            with _Content(item) as content:
                if content.empty:
                    return UnreadableInput(f"the {content.kind} is empty")
                result = self._model.identify_stream(content.stream)
        except RunnerError as error:
            return error
        except Exception as error:  # noqa: BLE001  one input's fault must not cost the others
            return wire.as_runner_error(error)
        found = result.output
        return RawAnswer(
            raw={
                "predictions": [{"label": str(found.label), "score": float(result.score)}],
                "mime_type": found.mime_type,
                "group": found.group,
                "description": found.description,
                "is_text": bool(found.is_text),
            },
            model_version=self._version,
        )


class _Content:
    """The bytes of an input: its file where there is one, else its text as UTF-8."""

    def __init__(self, item: RunnerInput) -> None:
        self.kind = "file" if item.path is not None else "text"
        self.stream = _open(item.path) if item.path is not None else _encoded(item.text)
        self.empty = not self.stream.read(1)
        self.stream.seek(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def _open(path: Path) -> io.BufferedIOBase:
    try:
        return path.open("rb")
    except OSError as error:
        raise FileMissing(f"the file cannot be opened: {error.strerror}") from error


def _encoded(text: str | None) -> io.BufferedIOBase:
    if text is None:
        raise UnreadableInput("the item has neither a file nor a text")
    return io.BytesIO(text.encode("utf-8", "surrogatepass"))
