"""Fits the marks of an archive into the item they belong to, or tells why one does not fit."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppworker.domain import coordinates as rule
from ppworker.domain import geometry as geo
from ppworker.domain.coordinates import About
from ppworker.domain.drop import Reason
from ppworker.domain.labels import MAX_NAME
from ppworker.domain.text import clean_text, json_text
from ppworker.formats.base import Mark

_MOST_TEXT = 100_000
_MOST_GEOMETRY = 1_000_000
_MOST_POINTS = 100_000
_KINDS = frozenset({"class", "bbox", "polygon", "keypoints", "span", "segment"})
_SOURCES = frozenset({"human", "model", "inference", "import"})
_REVIEWS = frozenset({"suggested", "accepted", "edited"})
_PLANE = 2


@dataclass(slots=True, kw_only=True)
class Placed:
    """An annotation to be, without its label's id."""

    label: str
    kind: str
    coordinates: str
    geometry: str | None
    """JSON text."""
    text: str | None
    page: int | None
    score: float | None
    source: str
    review: str
    model_version: str
    origin: str | None
    """JSON text: what it was where it was exported, if that cannot be said here."""

    @property
    def key(self) -> tuple[Any, ...]:
        """What two annotations of an item are the same by."""
        return (self.label, self.kind, self.coordinates, self.geometry, self.page, self.text)


def place(mark: Mark, about: About, page_count: int | None) -> Placed | Reason:
    """What a mark becomes on an item.

    Marks of our own format are kept as they stand, if they can be stored at all; others are
    fitted into the item as predictions are.
    """
    label = " ".join(clean_text(mark.label)[0].split())
    if (fault := _fault(mark, label, page_count)) is not None:
        return fault
    found = _as_it_stands(mark) if mark.is_exact else _located(mark, about)
    if isinstance(found, Reason):
        return found
    geometry = None if found.geometry is None else json_text(found.geometry)[0]
    if geometry is not None and len(geometry) > _MOST_GEOMETRY:
        return Reason.BAD_GEOMETRY
    return Placed(
        label=label,
        kind=found.kind,
        coordinates=clean_text(found.coordinates)[0],
        geometry=geometry,
        text=None if found.text is None else clean_text(found.text)[0],
        page=mark.page,
        score=mark.score,
        source=mark.source if mark.source == "human" else "import",
        review=mark.review,
        model_version=clean_text(mark.model_version)[0],
        origin=_origin(mark),
    )


def _fault(mark: Mark, label: str, page_count: int | None) -> Reason | None:
    """Why it cannot be stored wherever it lies."""
    if not label or len(label) > MAX_NAME:
        return Reason.BAD_LABEL
    if mark.score is not None and not 0 <= mark.score <= 1:
        return Reason.BAD_SCORE
    if mark.page is not None and not 0 <= mark.page < (page_count or geo.MAX_PAGES):
        return Reason.OUTSIDE
    is_known = mark.source in _SOURCES and mark.review in _REVIEWS
    return None if is_known else Reason.MALFORMED


def _origin(mark: Mark) -> str | None:
    """A model's or an inference's word is nobody's here: there is no post-processor to undo it."""
    if mark.source in {"human", "import"}:
        return None
    said = {"source": mark.source, "post_processor": clean_text(mark.post_processor)[0]}
    return json.dumps({name: value for name, value in said.items() if value})


def _as_it_stands(mark: Mark) -> rule.Place | Reason:
    if mark.kind not in _KINDS:
        return Reason.UNSUPPORTED
    texts = (mark.coordinates, mark.text or "", mark.model_version)
    if any(len(text) > _MOST_TEXT for text in texts):
        return Reason.MALFORMED
    return rule.Place(
        kind=mark.kind, coordinates=mark.coordinates, geometry=mark.geometry, text=mark.text
    )


def _located(mark: Mark, about: About) -> rule.Place | Reason:
    if len(mark.coordinates) > _MOST_TEXT or len(mark.text or "") > _MOST_TEXT:
        return Reason.MALFORMED
    if mark.kind == "class":
        return rule.Place(kind="class", coordinates=mark.coordinates, text=mark.text)
    if mark.geometry is None:
        found = rule.locate(mark.coordinates, about)
        if isinstance(found, Reason) or mark.kind is None or found.kind == mark.kind:
            return found if isinstance(found, Reason) else _quoting(found, mark)
        return Reason.BAD_GEOMETRY
    found = _shaped(mark, mark.geometry, about)
    return found if isinstance(found, Reason) else _quoting(found, mark)


def _quoting(found: rule.Place, mark: Mark) -> rule.Place:
    """Text that was read or said at a place; that of a span is the item's own."""
    if found.text is None and found.kind != "span":
        found.text = mark.text
    return found


def _shaped(mark: Mark, geometry: Mapping[str, Any], about: About) -> rule.Place | Reason:
    if mark.kind in {"span", "segment"}:
        start, end = geometry.get("start"), geometry.get("end")
        if geo.number(start) is None or geo.number(end) is None:
            return Reason.BAD_GEOMETRY
        said = rule.locate(f"{start} {end}", about)
        return (
            Reason.BAD_GEOMETRY if not isinstance(said, Reason) and said.kind != mark.kind else said
        )
    # The item's size is that of its first page.
    width, height = (None, None) if mark.page else (about.width, about.height)
    if mark.kind == "bbox":
        return _box(mark, geometry, width, height)
    if mark.kind in {"polygon", "keypoints"}:
        return _points(mark, geometry, width, height)
    return Reason.UNSUPPORTED


def _box(
    mark: Mark, geometry: Mapping[str, Any], width: int | None, height: int | None
) -> rule.Place | Reason:
    box = geo.read_box(geometry.get("box"))
    if box is None:
        return Reason.BAD_GEOMETRY
    if mark.is_relative and not (width and height):
        x1, y1, x2, y2 = box
        if not x1 < x2 or not y1 < y2:
            return Reason.ZERO_AREA
        shares = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        return rule.Place(kind="bbox", coordinates=" ".join(f"{share:.6f}" for share in shares))
    if mark.is_relative and width and height:
        sides = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
        box = [round(side, rule.PIXEL_DIGITS) for side in sides]
    fitted = geo.fit_box(box, width, height)
    if isinstance(fitted, Reason):
        return fitted
    coordinates = geo.box_coordinates(fitted, width, height)
    return rule.Place(kind="bbox", geometry={"box": fitted}, coordinates=coordinates)


def _points(
    mark: Mark, geometry: Mapping[str, Any], width: int | None, height: int | None
) -> rule.Place | Reason:
    given = geometry.get("points")
    if not isinstance(given, list | tuple) or not 1 <= len(given) <= _MOST_POINTS:
        return Reason.BAD_GEOMETRY
    if mark.is_relative and not (width and height):
        return Reason.BAD_GEOMETRY  # shares of what nobody knows
    across, down = width or 1, height or 1
    points: list[tuple[float, float]] = []
    for point in given:
        numbers = [geo.number(each) for each in point] if isinstance(point, list | tuple) else []
        if len(numbers) < _PLANE or numbers[0] is None or numbers[1] is None:
            return Reason.BAD_GEOMETRY
        x, y = numbers[0], numbers[1]
        if mark.is_relative:
            x, y = round(x * across, rule.PIXEL_DIGITS), round(y * down, rule.PIXEL_DIGITS)
        points.append((x, y))
    return _fitted(mark, given, points, width, height)


def _fitted(
    mark: Mark,
    given: Sequence[Sequence[Any]],
    points: list[tuple[float, float]],
    width: int | None,
    height: int | None,
) -> rule.Place | Reason:
    if mark.kind == "keypoints":
        # What is not visible stands at zero, wherever the image lies: nothing is clamped.
        kept = [[x, y, *said[2:3]] for (x, y), said in zip(points, given, strict=True)]
        coordinates = geo.box_coordinates(geo.bounds(points), width, height)
        return rule.Place(kind="keypoints", geometry={"points": kept}, coordinates=coordinates)
    read = geo.read_polygon(points)
    fitted = Reason.BAD_GEOMETRY if read is None else geo.fit_polygon(read, width, height)
    if isinstance(fitted, Reason):
        return fitted
    return rule.Place(
        kind="polygon",
        geometry={"points": [[x, y] for x, y in fitted]},
        coordinates=geo.box_coordinates(geo.bounds(fitted), width, height),
    )
