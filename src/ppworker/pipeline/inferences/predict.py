"""Asks a model about one input, for a request that waits for the answer.

Models run in processes of their own, few at a time: this process imports no model library, and a
crash or a hang costs one request. Nothing is written here.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

from ppworker.domain.answer import parse
from ppworker.domain.apply import Draft, Target, apply
from ppworker.domain.post_processor import OutputTarget, PostProcessor
from ppworker.domain.text import clean_json, clean_text
from ppworker.errors import (
    Invalid,
    RunnerError,
    Unavailable,
    UnreadableInput,
    UnsupportedMedia,
)
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup.models import Chosen
from ppworker.pipeline.uploads import ingest, media
from ppworker.pipeline.uploads.names import clean_name
from ppworker.runners.base import RawAnswer, RunnerInput, RunnerSpec
from ppworker.runners.inspector import Inspection
from ppworker.runners.pool import Permit, RunnerPool
from ppworker.settings import Settings

_LOOK_AGAIN_S = 0.05
_NOBODY = UUID(int=0)
_TEXT_ALONE = frozenset({"ocr", "stt"})
"""Tasks that are asked for the text and nothing else."""
_MOST_LABELS = 10_000
_ABOUT_INPUT = frozenset({UnreadableInput.code, UnsupportedMedia.code})
"""Codes of errors that the input is to blame for; all others are the model's."""
_TEXT = "text/plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What a model is asked about: a text or a file."""

    text: str | None = None
    path: Path | None = None
    name: str = ""
    """Of the file, as the client calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a model said about an input."""

    text: str
    """The text that it wrote, empty where it writes none."""
    predictions: tuple[Draft, ...]
    model_version: str
    media: media.Media | None
    """Facts about the file, None for a text."""
    model_s: float
    """Seconds until the answer; the first time they include loading the model."""
    whole_s: float


class Predictor:
    """The models of a process that answers requests."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool = RunnerPool(max_loaded=settings.inference_models, isolate_all=True)
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._is_closed = False

    def ask(self, deps: Deps, chosen: Chosen, given: Input) -> Said:
        """Ask a model; it is loaded if it is not.

        Raises:
            Invalid: the model takes no such input, or cannot read this one.
            Unavailable: it is busy, cannot be loaded, or did not answer in time.
        """
        began = time.monotonic()
        spec = chosen.spec()
        with _prepared(deps, spec, given) as (runner_input, found):
            asked = time.monotonic()
            answer = self._answer(chosen, runner_input)
        model_s = time.monotonic() - asked
        said = _read(deps, chosen, spec, answer, runner_input, found)
        return replace(said, model_s=model_s, whole_s=time.monotonic() - began)

    def close(self) -> None:
        """End all models; whoever waits for one is told that it is unavailable."""
        with self._lock:
            self._is_closed = True
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        self._pool.close()

    def _answer(self, chosen: Chosen, given: RunnerInput) -> RawAnswer:
        try:
            with self._permit(chosen) as permit:
                answer = self._pool.predict(permit, [given], self._settings.inference_timeout_s)[0]
        finally:
            self._release_later()
        if isinstance(answer, RunnerError):
            if answer.code in _ABOUT_INPUT:
                field = "input_text" if given.media_type == _TEXT and not given.name else "file"
                raise Invalid(f"the model cannot use this input: {answer}", field=field)
            raise Unavailable(f"the model gave no answer: {answer}", field="model_id")
        return answer

    def _permit(self, chosen: Chosen) -> Permit:
        until = time.monotonic() + self._settings.inference_timeout_s
        while True:
            permit = self._pool.acquire(chosen.runner, chosen.runner_config)
            if permit is not None:
                return permit
            if self._is_closed or time.monotonic() >= until:
                raise Unavailable("the model is busy; try again", field="model_id")
            time.sleep(_LOOK_AGAIN_S)

    def _release_later(self) -> None:
        """Have models that nobody asks any more give their memory back."""
        with self._lock:
            if self._is_closed or self._timer is not None:
                return
            self._timer = threading.Timer(self._settings.idle_unload_s, self._release)
            self._timer.daemon = True
            self._timer.start()

    def _release(self) -> None:
        with self._lock:
            self._timer = None
        # A little less: the one whose answer set the timer shall be among them.
        self._pool.close_idle(self._settings.idle_unload_s * 0.9)
        if self._pool.is_used:
            self._release_later()


@contextmanager
def _prepared(
    deps: Deps, spec: RunnerSpec, given: Input
) -> Iterator[tuple[RunnerInput, media.Media | None]]:
    """The input as the runner reads it."""
    if given.path is not None:
        yield _of_file(deps, spec, given, given.path)
        return
    text, _ = clean_text(given.text or "")
    if not text:
        raise Invalid("is empty; there is nothing to ask about", field="input_text")
    most = deps.settings.max_text_bytes
    if len(text.encode()) > most:
        raise Invalid(f"has more than {most} bytes", field="input_text")
    if spec.reads != "file":
        yield RunnerInput(key="inference", media_type=_TEXT, text=text), None
        return
    _check_media(spec, _TEXT, "input_text")
    with TemporaryDirectory(prefix="ppworker-") as folder:
        path = Path(folder) / "input.txt"
        path.write_text(text, encoding="utf-8")
        yield RunnerInput(key="inference", media_type=_TEXT, path=path), None


def _of_file(
    deps: Deps, spec: RunnerSpec, given: Input, path: Path
) -> tuple[RunnerInput, media.Media]:
    name = clean_name(given.name)
    with Inspection(max_text_bytes=deps.settings.max_text_bytes) as inspection:
        found = media.inspect(path, name, inspection)
    runner_input = RunnerInput(key="inference", name=name, media_type=found.media_type)
    if spec.reads == "text":
        runner_input.text = _text_of(deps, path, found)
    else:
        _check_media(spec, found.media_type, "file")
        runner_input.path = path
    return runner_input, found


def _check_media(spec: RunnerSpec, media_type: str, field: str) -> None:
    if not any(fnmatchcase(media_type, pattern) for pattern in spec.media_types):
        takes = ", ".join(spec.media_types)
        raise Invalid(f"is {media_type}; this model takes {takes}", field=field)


def _text_of(deps: Deps, path: Path, found: media.Media) -> str:
    is_text, most = found.media_type in ingest.TEXT_TYPES, deps.settings.max_text_bytes
    if found.is_text_too_long or (is_text and found.size_bytes > most):
        raise Invalid(f"has more than {most} bytes of text", field="file")
    text = path.read_bytes().decode("utf-8-sig") if is_text else found.text
    if not text:
        raise Invalid(f"is {found.media_type}; this model reads text", field="file")
    return clean_text(text)[0]


def _read(
    deps: Deps,
    chosen: Chosen,
    spec: RunnerSpec,
    answer: RawAnswer,
    given: RunnerInput,
    found: media.Media | None,
) -> Said:
    """The answer as a post-processor of no dataset would take it: every label is welcome."""
    raw: Mapping[str, Any] = clean_json(answer.raw)[0]
    task = spec.tasks[0]
    try:
        inference = parse(task, raw)
    except RunnerError as error:
        raise Unavailable(f"the model's answer makes no sense: {error}", field="model_id") from None
    target: OutputTarget = "text" if task in _TEXT_ALONE else "annotations"
    processor = PostProcessor(
        id=_NOBODY, dataset_id=_NOBODY, name="inference", model_type=task, runner=chosen.runner,
        output_target="both" if task in {"llm", "stt-diarization"} else target,
        max_new_labels=_MOST_LABELS,
    )  # fmt: skip
    about = Target(text=given.text, max_text_bytes=deps.settings.max_text_bytes)
    if found is not None:
        about = replace(
            about, width=found.width, height=found.height, page_count=found.page_count,
            duration_s=found.duration_s,
        )  # fmt: skip
    applied = apply(inference, processor, {}, about)
    return Said(
        text=applied.text or "",
        predictions=applied.drafts,
        model_version=answer.model_version,
        media=found,
        model_s=0,
        whole_s=0,
    )
