"""Decides what a model's answer becomes: the item's text, annotations, new labels.

A pure function of answer, settings, labels and item, so that a changed threshold or mapping needs
no new inference. Every prediction becomes a draft or is counted as dropped with its reason.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from ppworker.domain import geometry as geo
from ppworker.domain.drop import Reason, tally
from ppworker.domain.inference import Inference, Kind, Prediction
from ppworker.domain.labels import Resolver, normalise_label
from ppworker.domain.post_processor import PostProcessor
from ppworker.domain.text import clean_text

_TO_JSON = json.JSONEncoder(ensure_ascii=True, sort_keys=True, separators=(",", ":"))


@dataclass(slots=True, kw_only=True)
class Target:
    """What applying needs to know of the item and its dataset."""

    multi_label: bool = True
    """Whether an item may carry several labels."""
    text: str | None = None
    """The item's text as stored, which spans refer to."""
    width: int | None = None
    """Of the upright image, in pixels."""
    height: int | None = None
    page_count: int | None = None
    duration_s: float | None = None
    max_text_bytes: int | None = None
    """Most bytes that a new text of the item may have; None is no limit."""


@dataclass(slots=True, kw_only=True)
class Draft:
    """An annotation to be."""

    label: str
    """Name of the label as in the dataset (or in ``Applied.new_labels``): mapped and prefixed."""
    kind: Kind
    geometry: Mapping[str, Any] | None
    """As in `Prediction`, made to fit the item; JSON-ready."""
    coordinates: str
    """Public string of the place: boxes and polygons (their bounding box) ``x y w h`` relative to
    the image with x, y the centre, empty where its size is not known; spans ``start end`` in code
    points; segments ``start end`` in seconds; empty for ``class``."""
    text: str | None
    """Text at the span, or what was read or said at the place."""
    score: float | None
    page: int | None
    fingerprint: str
    """Identity of the model's original prediction, see `fingerprint`."""


@dataclass(slots=True, kw_only=True)
class Applied:
    """What should be written for one answer."""

    text: str | None
    """New text of the item; None leaves its text alone."""
    drafts: tuple[Draft, ...]
    """In the order of the predictions."""
    new_labels: tuple[str, ...]
    """Names to create, each used by a draft, the best score first."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Predictions that became no draft, counted by `Reason`. What the raw answer lost when it was
    read is not among them (``Inference.dropped``)."""
    cleaned: int = 0
    """Code points taken out of text because PostgreSQL refuses them."""


@dataclass(slots=True, kw_only=True)
class _Place:
    """Where a prediction is, fitted into the item."""

    geometry: Mapping[str, Any] | None = None
    coordinates: str = ""
    text: str | None = None


@dataclass(slots=True)
class _Candidate:
    draft: Draft
    is_new: bool
    position: int


def apply(
    inference: Inference,
    processor: PostProcessor,
    labels: Mapping[str, UUID],
    target: Target,
    resolver: Resolver | None = None,
) -> Applied:
    """Turn an answer into what should be written, without writing it.

    In this order: score against the threshold (inclusive), the one best class where the dataset
    takes one label per item, label, place, duplicates, cap of new labels. The choice of the best
    class comes before its label, so that an unmapped best class never promotes the second best.

    Args:
        inference: the model's answer.
        processor: settings; ``max_new_labels`` caps the new labels of this one answer.
        labels: labels of the version, by name.
        target: the item. Where the answer writes the text too, spans refer to the new text.
    """
    dropped: Counter[Reason] = Counter()
    text, cleaned = _new_text(inference, processor)
    # Offsets count the text as the model gave it, so the span check sees it before the cleaning.
    spans_in = inference.text if text is not None else target.text
    if _is_too_long(text, target):
        # Half a text would pass for the whole; and places in a text that is not kept are nowhere.
        text = spans_in = None
        dropped[Reason.TEXT_TOO_LONG] += 1
    predictions = [_clean(prediction) for prediction in inference.predictions]
    cleaned += sum(changes for _, changes in predictions)
    if processor.output_target == "text":
        dropped[Reason.NOT_ASKED] = len(predictions)
        return Applied(text=text, drafts=(), new_labels=(), dropped=tally(dropped), cleaned=cleaned)
    resolver = resolver or Resolver(processor, labels)
    candidates = []
    for position in _scored(inference.predictions, processor, target, dropped):
        prediction = predictions[position][0]
        draft = _draft(prediction, resolver, target, spans_in)
        if isinstance(draft, Reason):
            dropped[draft] += 1
        else:
            candidates.append(_Candidate(draft[0], draft[1], position))
    candidates = _without_duplicates(candidates, dropped)
    candidates, new_labels = _within_cap(candidates, processor.max_new_labels, dropped)
    return Applied(
        text=text,
        drafts=tuple(c.draft for c in sorted(candidates, key=lambda c: c.position)),
        new_labels=new_labels,
        dropped=tally(dropped),
        cleaned=cleaned,
    )


def fingerprint(prediction: Prediction, quoted: str | None) -> str:
    """Identity of a model's original prediction: 32 hexadecimal digits.

    It covers what the model said (its own label before mapping and prefix, kind, place before
    clamping, page, text) and neither the score nor the dataset's label. So an equal re-run finds
    its rows again, a changed mapping or threshold updates the very same row, and what a person
    deleted stays deleted under any mapping.

    Args:
        prediction: as the model gave it, its strings cleaned.
        quoted: the text at the place, which for spans is the item's, quoted by the model or not.
    """
    said = [
        prediction.kind,
        prediction.label,
        _rounded(prediction.geometry),
        prediction.page,
        quoted,
    ]
    encoded = _TO_JSON.encode(said)
    return hashlib.sha256(encoded.encode("ascii")).hexdigest()[:32]


def _new_text(inference: Inference, processor: PostProcessor) -> tuple[str | None, int]:
    if processor.output_target == "annotations" or inference.text is None:
        return None, 0
    return clean_text(inference.text)


def _is_too_long(text: str | None, target: Target) -> bool:
    most = target.max_text_bytes
    if text is None or most is None or len(text) <= most // 4:  # no character takes more bytes
        return False
    return len(text.encode()) > most


def _clean(prediction: Prediction) -> tuple[Prediction, int]:
    label, in_label = (None, 0) if prediction.label is None else clean_text(prediction.label)
    text, in_text = (None, 0) if prediction.text is None else clean_text(prediction.text)
    if not in_label and not in_text:
        return prediction, 0
    return replace(prediction, label=label, text=text), in_label + in_text


def _scored(
    predictions: Sequence[Prediction],
    processor: PostProcessor,
    target: Target,
    dropped: Counter[Reason],
) -> list[int]:
    """Positions of the predictions that pass the threshold and the one-label rule."""
    passed = []
    for position, prediction in enumerate(predictions):
        if (reason := _score_fault(prediction.score, processor)) is not None:
            dropped[reason] += 1
        else:
            passed.append(position)
    classes = [position for position in passed if predictions[position].kind == "class"]
    if target.multi_label or not classes:
        return passed
    top = min(classes, key=lambda position: _rank(predictions[position].score, position))
    dropped[Reason.NOT_TOP] += len(classes) - 1
    return [p for p in passed if p == top or predictions[p].kind != "class"]


def _score_fault(score: float | None, processor: PostProcessor) -> Reason | None:
    threshold = processor.confidence_threshold
    if score is None:
        return None if processor.keep_unscored or threshold == 0 else Reason.UNSCORED
    if not 0 <= score <= 1:
        return Reason.BAD_SCORE
    return None if score >= threshold else Reason.BELOW_THRESHOLD


def _rank(score: float | None, position: int) -> tuple[float, int]:
    """Sorts the best score first, the unscored last, equal ones as the model ordered them."""
    return (1.0 if score is None else -score, position)


def _draft(
    prediction: Prediction, resolver: Resolver, target: Target, spans_in: str | None
) -> tuple[Draft, bool] | Reason:
    if prediction.label is None:
        return Reason.BAD_LABEL
    resolved = resolver.resolve(prediction.label)
    if isinstance(resolved, Reason):
        return resolved
    place = _place(prediction, target, spans_in)
    if isinstance(place, Reason):
        return place
    draft = Draft(
        label=resolved.name,
        kind=prediction.kind,
        geometry=place.geometry,
        coordinates=place.coordinates,
        text=place.text,
        score=prediction.score,
        page=prediction.page,
        fingerprint=fingerprint(prediction, place.text),
    )
    return draft, resolved.is_new


def _place(prediction: Prediction, target: Target, spans_in: str | None) -> _Place | Reason:
    geometry = prediction.geometry or {}
    if prediction.kind == "class":
        return _Place(text=prediction.text)
    if prediction.kind == "span":
        return _span(geometry, prediction.text, spans_in)
    if prediction.kind == "segment":
        return _segment(geometry, prediction.text, target.duration_s)
    return _on_page(prediction, geometry, target)


def _on_page(
    prediction: Prediction, geometry: Mapping[str, Any], target: Target
) -> _Place | Reason:
    page = prediction.page
    if page is not None and not 0 <= page < (target.page_count or geo.MAX_PAGES):
        return Reason.OUTSIDE
    # The item's size is that of its first page.
    width, height = (None, None) if page else (target.width, target.height)
    if prediction.kind == "bbox":
        return _box(geometry, prediction.text, width, height)
    if prediction.kind == "polygon":
        return _polygon(geometry, prediction.text, width, height)
    return Reason.UNSUPPORTED


def _box(
    geometry: Mapping[str, Any], text: str | None, width: int | None, height: int | None
) -> _Place | Reason:
    box = geo.read_box(geometry.get("box"))
    if box is None:
        return Reason.BAD_GEOMETRY
    fitted = geo.fit_box(box, width, height)
    if isinstance(fitted, Reason):
        return fitted
    coordinates = geo.box_coordinates(fitted, width, height)
    return _Place(geometry={"box": fitted}, coordinates=coordinates, text=text)


def _polygon(
    geometry: Mapping[str, Any], text: str | None, width: int | None, height: int | None
) -> _Place | Reason:
    points = geo.read_polygon(geometry.get("points"))
    if points is None:
        return Reason.BAD_GEOMETRY
    fitted = geo.fit_polygon(points, width, height)
    if isinstance(fitted, Reason):
        return fitted
    coordinates = geo.box_coordinates(geo.bounds(fitted), width, height)
    return _Place(
        geometry={"points": [[x, y] for x, y in fitted]}, coordinates=coordinates, text=text
    )


def _span(geometry: Mapping[str, Any], quoted: str | None, text: str | None) -> _Place | Reason:
    start, end = geo.whole_number(geometry.get("start")), geo.whole_number(geometry.get("end"))
    if start is None or end is None:
        return Reason.BAD_GEOMETRY
    if text is None:
        return Reason.OUTSIDE
    span = geo.fit_span(start, end, text)
    if isinstance(span, Reason):
        return span
    # Offsets move by what is taken out of the text before them.
    start, end = (len(clean_text(text[:offset])[0]) for offset in span)
    there = clean_text(text[slice(*span)])[0]
    if not there:
        return Reason.EMPTY
    if quoted is not None and quoted != there:
        return Reason.SPAN_MISMATCH
    return _Place(geometry={"start": start, "end": end}, coordinates=f"{start} {end}", text=there)


def _segment(
    geometry: Mapping[str, Any], text: str | None, duration_s: float | None
) -> _Place | Reason:
    start, end = geo.number(geometry.get("start")), geo.number(geometry.get("end"))
    if start is None or end is None:
        return Reason.BAD_GEOMETRY
    segment = geo.fit_segment(start, end, duration_s)
    if isinstance(segment, Reason):
        return segment
    start, end = segment
    return _Place(
        geometry={"start": start, "end": end}, coordinates=f"{start:.3f} {end:.3f}", text=text
    )


def _without_duplicates(candidates: list[_Candidate], dropped: Counter[Reason]) -> list[_Candidate]:
    """Best of each prediction said twice, and of each annotation two predictions would make."""
    if len(candidates) <= 1:
        return candidates
    kept: list[_Candidate] = []
    seen: set[Any] = set()
    for candidate in sorted(candidates, key=lambda c: _rank(c.draft.score, c.position)):
        draft = candidate.draft
        result = (
            normalise_label(draft.label),
            draft.kind,
            json.dumps(_rounded(draft.geometry), sort_keys=True),
            draft.page,
            None if draft.kind == "class" else draft.text,
        )
        if draft.fingerprint in seen or result in seen:
            dropped[Reason.DUPLICATE] += 1
        else:
            seen |= {draft.fingerprint, result}
            kept.append(candidate)
    return kept


def _within_cap(
    candidates: list[_Candidate], cap: int, dropped: Counter[Reason]
) -> tuple[list[_Candidate], tuple[str, ...]]:
    """Candidates, best first, whose labels exist or are among the first ``cap`` new ones."""
    kept: list[_Candidate] = []
    new: dict[str, str] = {}
    for candidate in candidates:
        if candidate.is_new:
            form = normalise_label(candidate.draft.label)
            if form not in new and len(new) >= cap:
                dropped[Reason.LABEL_CAP] += 1
                continue
            # Two spellings of one new label are one label, named by the better score.
            name = new.setdefault(form, candidate.draft.label)
            renamed = replace(candidate.draft, label=name)
            kept.append(replace(candidate, draft=renamed))
        else:
            kept.append(candidate)
    return kept, tuple(new.values())


def _rounded(value: Any) -> Any:
    """Geometry with its numbers to hundredths, so that noise of arithmetic is no difference."""
    if isinstance(value, Mapping):
        return {str(key): _rounded(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(element) for element in value]
    found = geo.number(value)
    # Adding zero turns -0.0 into 0.0.
    return None if found is None else round(found, 2) + 0.0
