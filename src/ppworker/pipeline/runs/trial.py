"""Tries a post-processor on one input, in this process, without writing anything."""

import io
import struct
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

from PIL import Image, ImageDraw, ImageFont

from ppworker.domain.answer import parse
from ppworker.domain.apply import Applied, Target, apply
from ppworker.domain.drop import add_counts
from ppworker.domain.post_processor import PostProcessor
from ppworker.domain.text import clean_json, clean_text
from ppworker.errors import Invalid, RunnerError
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.uploads import ingest, media
from ppworker.runners.base import RunnerInput
from ppworker.runners.inspector import Inspection
from ppworker.runners.pool import RunnerPool
from ppworker.store import datasets, labels

SAMPLE_TEXT = "123 Main Street, Springfield, IL 62704"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a model said about one input, and what it would have become."""

    input: str
    media_type: str
    seconds: float
    """Time until the answer, loading the model included."""
    model_version: str = ""
    raw: Mapping[str, Any] | None = None
    applied: Applied | None = None
    dropped: Mapping[str, int] | None = None
    """Everything that would not have become an annotation, by reason."""
    error: RunnerError | None = None
    """Why there is no answer; everything after it is empty."""


def try_out(
    deps: Deps,
    models: RunnerPool,
    processor: PostProcessor,
    path: Path | None,
    *,
    version_id: UUID,
) -> Trial:
    """Ask the model about a file, or about a short sample that it can read.

    Args:
        deps: the collaborators.
        models: where the model is loaded.
        processor: whose settings are tried.
        path: the file; None takes a sample.
        version_id: whose labels the answer is held against.

    Raises:
        Invalid: the post-processor takes no such input, or the file cannot be read.
    """
    with ExitStack() as stack:
        if path is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="ppworker-")))
            path = _sample(processor, folder)
        given, found = _input(deps, processor, path)
        started = time.monotonic()
        permit = models.acquire(processor.runner, processor.runner_config)
        if permit is None:
            raise Invalid("the model is busy; try again", field="processor")
        with permit:
            answer = models.predict(permit, [given], processor.timeout_s)[0]
        seconds = time.monotonic() - started
    trial = Trial(input=given.name, media_type=given.media_type, seconds=seconds)
    if isinstance(answer, RunnerError):
        return replace(trial, error=answer)
    raw, _ = clean_json(answer.raw)
    trial = replace(trial, model_version=answer.model_version, raw=raw)
    target = Target(
        text=given.text,
        width=found.width,
        height=found.height,
        page_count=found.page_count,
        duration_s=found.duration_s,
        max_text_bytes=deps.settings.max_text_bytes,
    )
    return _applied(deps, processor, trial, target, version_id)


def _applied(
    deps: Deps, processor: PostProcessor, trial: Trial, target: Target, version_id: UUID
) -> Trial:
    try:
        inference = parse(processor.model_type, trial.raw or {})
    except RunnerError as error:
        return replace(trial, error=error)
    with deps.db.begin() as tx:
        names = labels.names_by_version(tx, [version_id]).get(version_id, {})
        multi_label = datasets.is_multi_label(tx, [version_id])[version_id]
    applied = apply(inference, processor, names, replace(target, multi_label=multi_label))
    return replace(trial, applied=applied, dropped=add_counts(inference.dropped, applied.dropped))


def _input(deps: Deps, processor: PostProcessor, path: Path) -> tuple[RunnerInput, media.Media]:
    try:
        with Inspection(max_text_bytes=deps.settings.max_text_bytes) as inspection:
            found = media.inspect(path, path.name, inspection)
    except OSError as error:
        raise Invalid(f"'{path}' cannot be read ({error.strerror})", field="PATH") from None
    if processor.reads != "text":
        takes = processor.media_types
        if not any(fnmatchcase(found.media_type, pattern) for pattern in takes):
            raise Invalid(
                f"'{path}' is {found.media_type}; runner '{processor.runner}' takes "
                f"{', '.join(takes)}",
                field="PATH",
            )
        given = RunnerInput(key="trial", name=path.name, media_type=found.media_type, path=path)
        return given, found
    text, _ = clean_text(_text(deps, processor, path, found))
    given = RunnerInput(key="trial", name=path.name, media_type=found.media_type, text=text)
    return given, found


def _text(deps: Deps, processor: PostProcessor, path: Path, found: media.Media) -> str:
    is_text, most = found.media_type in ingest.TEXT_TYPES, deps.settings.max_text_bytes
    if found.is_text_too_long or (is_text and found.size_bytes > most):
        raise Invalid(f"'{path}' has more than {most} bytes of text", field="PATH")
    if is_text:
        return path.read_bytes().decode("utf-8-sig")
    if found.text is None:
        note = f" ({found.note})" if found.note else ""
        raise Invalid(
            f"'{path}' is {found.media_type}{note}; runner '{processor.runner}' reads text",
            field="PATH",
        )
    return found.text


def _sample(processor: PostProcessor, folder: Path) -> Path:
    """A short file of a kind that the post-processor takes.

    Raises:
        Invalid: there is no sample of such a kind.
    """
    if processor.reads == "text" or _takes(processor, "text/plain"):
        path = folder / "sample.txt"
        path.write_text(SAMPLE_TEXT + "\n", encoding="utf-8")
    elif _takes(processor, "image/png"):
        path = folder / "sample.png"
        path.write_bytes(_image())
    elif _takes(processor, "audio/wav"):
        path = folder / "sample.wav"
        path.write_bytes(_silence())
    else:
        kinds = ", ".join(processor.media_types)
        raise Invalid(f"there is no sample of {kinds}; name a file", field="PATH")
    return path


def _takes(processor: PostProcessor, media_type: str) -> bool:
    return any(fnmatchcase(media_type, pattern) for pattern in processor.media_types)


def _image() -> bytes:
    image = Image.new("RGB", (760, 120), "white")
    font = ImageFont.load_default(size=32)
    ImageDraw.Draw(image).text((20, 40), SAMPLE_TEXT, fill="black", font=font)
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


def _silence() -> bytes:
    """Half a second of it: 16 kHz, one channel, 16 bits."""
    samples = bytes(16_000)
    header = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(samples), b"WAVE", b"fmt ", 16, 1, 1,
                         16_000, 32_000, 2, 16)  # fmt: skip
    return header + struct.pack("<4sI", b"data", len(samples)) + samples
