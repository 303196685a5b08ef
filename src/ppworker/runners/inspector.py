"""Looks into uploaded files whose readers must not be trusted with the uploader's process.

No model, but it needs the same precautions: it runs in a process of its own, with limits of memory
and time, so that a file made to crash, hang or swell its reader costs a note and nothing else.
"""

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from ppworker.errors import RunnerError, RunnerTimeout, UnreadableInput
from ppworker.runners import options, pictures, sound, wire, word
from ppworker.runners.base import RawAnswer, RunnerInput, RunnerSpec
from ppworker.runners.child import ChildRunner
from ppworker.runners.wire import Answer

MEDIA_TYPES = (*sound.MEDIA_TYPES, word.MEDIA_TYPE, pictures.PDF, *pictures.FORMATS)
"""What it looks into."""

MAX_PROCESSES = 4
"""Most inspectors that this process has at a time; who wants another one waits."""

_TIMEOUT_S = 30.0
_MOST_TIMEOUTS = 3
"""Files of one inspection that may take too long; somebody waits for it, and others for them."""
_MAX_TEXT = 1 << 40


class Inspector:
    """Runs as a runner does: ``duration_s`` and ``has_video`` of sounds, ``text`` of documents,
    size and ``page_count`` of what has pages.
    """

    spec = RunnerSpec(
        tasks=(), reads="file", media_types=MEDIA_TYPES, memory_mb=sound.MEMORY_MB, needs=("av",)
    )

    def __init__(self, *, max_text_bytes: int) -> None:
        """Check the options.

        Args:
            max_text_bytes: most bytes of a document's text.
        """
        self._max_text = options.whole_number(
            "max_text_bytes", max_text_bytes, low=1, high=_MAX_TEXT
        )

    def load(self) -> None:
        """Nothing is kept between files."""

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        """Look into each file."""
        return [self._answer(item) for item in inputs]

    def close(self) -> None:
        """Nothing to give back."""

    def _answer(self, item: RunnerInput) -> RawAnswer | RunnerError:
        if item.path is None:
            return UnreadableInput("there is no file")
        try:
            if item.media_type == word.MEDIA_TYPE:
                return RawAnswer(raw={"text": word.text_of(item.path, max_bytes=self._max_text)})
            if item.media_type == pictures.PDF:
                return RawAnswer(raw=pictures.count_pages(item.path))
            if image_format := pictures.FORMATS.get(item.media_type):
                return RawAnswer(raw=pictures.measure(item.path, image_format))
            found = sound.measure(item.path)
            return RawAnswer(raw={"duration_s": found.duration_s, "has_video": found.has_video})
        except Exception as error:  # noqa: BLE001  one file's fault is its own
            return wire.as_runner_error(error)


# Held from the first look of an inspection to its end. Nobody waits for it in a transaction.
_processes = threading.BoundedSemaphore(MAX_PROCESSES)


class Inspection:
    """An inspector in a process of its own, started when it is first asked; close it.

    For one thread.
    """

    def __init__(self, *, max_text_bytes: int) -> None:
        self._counts = False
        self._timeouts = 0
        # The answer holds the text, and JSON may escape all of it.
        self._child = ChildRunner(
            f"{Inspector.__module__}:{Inspector.__qualname__}",
            {"max_text_bytes": max_text_bytes},
            max_answer_bytes=(1 << 20) + 6 * max_text_bytes,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def look(self, given: RunnerInput) -> Answer:
        """What is known of the file, or why nothing is; raises nothing that a file can cause."""
        if self._timeouts >= _MOST_TIMEOUTS:
            return RunnerTimeout(f"not looked into: {_MOST_TIMEOUTS} files before it took too long")
        if not self._counts:
            _processes.acquire()
            self._counts = True
        try:
            return self._child.predict([given], _TIMEOUT_S)[0]
        except RunnerError as error:
            self._timeouts += isinstance(error, RunnerTimeout)
            return error

    def close(self) -> None:
        """End the process."""
        try:
            self._child.close()
        finally:
            if self._counts:
                self._counts = False
                _processes.release()
