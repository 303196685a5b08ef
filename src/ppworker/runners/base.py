"""The one interface behind which every model hides.

A runner turns a batch of inputs into one raw answer or one error per input, in order. A raw answer
is a JSON object in the native shape (``domain/answer.py`` reads it): ``text``, ``predictions``
(``label``, ``score``, and ``bbox``, ``polygon`` or ``start``/``end``), ``pages`` for documents,
``segments`` for speech.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ppworker.domain.inference import Task
from ppworker.domain.post_processor import Reads
from ppworker.errors import RunnerError


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerSpec:
    """What a runner declares about itself."""

    tasks: tuple[Task, ...]
    """Model types it can serve; the first is its natural one."""
    reads: Reads
    media_types: tuple[str, ...] = ("*/*",)
    """Media types of files it takes, with ``*`` as wildcard."""
    max_batch: int = 64
    """Most inputs of one ``predict``."""
    isolated: bool = True
    """Run in a child process, so that a crash or a hang costs one attempt and not the worker."""
    memory_mb: int | None = None
    """Most address space of that child process, where the system can limit it; None: no limit."""
    labels: tuple[str, ...] | None = None
    """Labels it can answer, None where they are open."""
    thread_safe: bool = False
    """Whether threads may share one instance; only asked of runners that are not isolated."""
    paths: tuple[str, ...] = ()
    """Options that name files of the worker's machine: none for strangers to set."""
    needs: tuple[str, ...] = ()
    """Top-level modules that ``load`` imports; they need not be installed to read the spec."""
    extra: str = ""
    """Extra of ppworker that brings ``needs``, for the message when they are missing."""


@dataclass(slots=True, kw_only=True)
class RunnerInput:
    """One item as a runner sees it."""

    key: str
    """The job's id."""
    name: str = ""
    media_type: str = ""
    path: Path | None = None
    """Local file with the item's bytes, None for text-only items. Read it, never write it."""
    text: str | None = None
    """The item's text, for runners that read text."""


@dataclass(slots=True, kw_only=True)
class RawAnswer:
    """A model's answer for one input, unchanged."""

    raw: Mapping[str, Any]
    """JSON object in the native shape."""
    model_version: str = ""


class Runner(Protocol):
    """A model. Instances are built with the post-processor's ``runner_config`` as keywords.

    Building one only checks its keywords (``Invalid`` names the one at fault): it happens whenever
    a post-processor is created. Model libraries are imported by ``load``.
    """

    spec: RunnerSpec

    def load(self) -> None:
        """Load the model.

        Raises:
            RunnerUnavailable: the model cannot be loaded now; its message says what is missing.
        """

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        """Answer each input, in order, with a raw answer or an error *value* (not raised).

        Raises:
            RunnerError: the batch as a whole failed; the caller retries it by halves.
        """

    def close(self) -> None:
        """Give back what ``load`` took."""
