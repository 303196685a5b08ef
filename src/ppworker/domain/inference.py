"""What a model said about one item, in the project's own terms, whoever the model was."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Task = Literal["stt", "stt-diarization", "classification", "detection", "ner", "ocr", "llm"]
TASKS: tuple[Task, ...] = (
    "stt",
    "stt-diarization",
    "classification",
    "detection",
    "ner",
    "ocr",
    "llm",
)

Kind = Literal["class", "bbox", "polygon", "keypoints", "span", "segment"]
"""Kinds of annotation; ``class`` concerns the whole item and has no geometry."""


@dataclass(slots=True, kw_only=True)
class Prediction:
    """One element of an inference.

    ``geometry`` by kind: bbox ``{"box": [x1, y1, x2, y2]}`` and polygon
    ``{"points": [[x, y], ...]}`` in pixels of the upright image or rendered page, origin top left;
    span ``{"start": s, "end": e}`` half-open in Unicode code points of the item's text; segment the
    same in seconds; class None.
    """

    kind: Kind
    label: str | None = None
    score: float | None = None
    """Between 0 and 1, or None where the model gives none."""
    geometry: Mapping[str, Any] | None = None
    text: str | None = None
    """Quoted text of a span, or the text read inside a box."""
    page: int | None = None
    """Page of a document, from 0."""


@dataclass(slots=True, kw_only=True)
class Inference:
    """A model's whole answer for one item."""

    text: str | None = None
    predictions: tuple[Prediction, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Elements of the raw answer that could not be understood, counted by reason."""
