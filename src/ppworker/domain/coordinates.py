"""Decides where a string of coordinates points on an item; what it cannot place it keeps as it is.

The public conventions: ``x y w h`` as shares of the image with x, y the centre; ``start end`` in
code points of the text, the end outside; ``start end`` in seconds of a recording; empty for the
whole item.
"""

import re
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ppworker.domain import geometry as geo
from ppworker.domain.drop import Reason
from ppworker.domain.inference import Kind

MAX_QUOTE = 1_000
"""Longest text of a span that is stored with it, in code points: a few overlapping spans of a long
text could otherwise fill a disk."""

PIXEL_DIGITS = 6
"""Digits behind the point of a pixel that was counted in shares."""

Family = Literal["text", "image", "audio"]
"""What a place on an item is counted in: code points, shares of the page, or seconds."""

_IMAGES = frozenset(
    {"jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "avif", "heic", "pdf"}
)
_SOUNDS = frozenset({"wav", "mp3", "m4a", "flac", "ogg", "aac", "mp4", "mov", "avi", "mkv", "webm"})
_WHOLE = re.compile(r"[0-9]{1,9}")
_DECIMAL = re.compile(r"[+-]?([0-9]{1,15}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,2})?")
_SPAN_PARTS, _BOX_PARTS = 2, 4
_FROM_MIDDLE = 0.5 + geo.TOLERANCE_SHARE
"""Most distance of a share from 0.5; what lies farther off is no share of an image."""


@dataclass(slots=True, kw_only=True)
class About:
    """The item, as far as places depend on it."""

    family: Family = "text"
    text: str | None = None
    """What spans count in."""
    width: int | None = None
    """Of the upright image, in pixels."""
    height: int | None = None
    duration_s: float | None = None
    nuls: Sequence[int] = ()
    """Where the text holds NUL, ascending: it is taken out when the text is stored."""


def nuls_in(text: str) -> Sequence[int]:
    """Positions of NUL in a text."""
    return array("L", [nul.start() for nul in re.finditer("\0", text)]) if "\0" in text else ()


def family(media_type: str, extension: str) -> Family:
    """What places on an item are counted in, by its content or else by its name."""
    kind = media_type.partition("/")[0]
    if kind == "image" or media_type == "application/pdf":
        return "image"
    if kind in {"audio", "video"}:
        return "audio"
    if media_type:
        return "text"
    return "image" if extension in _IMAGES else "audio" if extension in _SOUNDS else "text"


@dataclass(slots=True, kw_only=True)
class Place:
    kind: Kind
    coordinates: str
    geometry: Mapping[str, Any] | None = None
    said: Mapping[str, Any] | None = None
    """The geometry before it was fitted into the item."""
    text: str | None = None


def may_be_span(coordinates: str) -> bool:
    """Whether the string has the form of a span, for which the item's text must be known."""
    return len(coordinates.split(None, _SPAN_PARTS)) == _SPAN_PARTS


def locate(coordinates: str, about: About) -> Place | Reason:
    """Where a string of coordinates points; what has no meaning here is kept as it is."""
    parts = coordinates.split(None, _BOX_PARTS)
    if not parts:
        return Place(kind="class", coordinates="")
    if len(parts) == _BOX_PARTS and about.family == "image":
        shares = [float(part) for part in parts if _DECIMAL.fullmatch(part)]
        if len(shares) == _BOX_PARTS and all(abs(share - 0.5) <= _FROM_MIDDLE for share in shares):
            return _box(shares, coordinates, about)
    if len(parts) == _SPAN_PARTS:
        if about.family == "audio":
            if all(_DECIMAL.fullmatch(part) for part in parts):
                return _segment(float(parts[0]), float(parts[1]), about)
        elif about.text is not None and all(_WHOLE.fullmatch(part) for part in parts):
            return _span(int(parts[0]), int(parts[1]), about.text, about.nuls)
    return Place(kind="class", coordinates=coordinates)


def _box(shares: Sequence[float], coordinates: str, about: About) -> Place | Reason:
    """Centre and size relative to the image, as pixels where its size is known."""
    x, y, w, h = shares
    if w <= 0 or h <= 0:
        return Reason.ZERO_AREA
    if not about.width or not about.height:
        return Place(kind="bbox", coordinates=coordinates)
    width, height = about.width, about.height
    box = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
    fitted = geo.fit_box(box, width, height)
    if isinstance(fitted, Reason):
        return fitted
    return Place(
        kind="bbox",
        # Shares that were made of whole pixels give whole pixels again.
        geometry={"box": [round(side, PIXEL_DIGITS) for side in fitted]},
        said={"box": box},
        coordinates=geo.box_coordinates(fitted, width, height),
    )


def _segment(start: float, end: float, about: About) -> Place | Reason:
    fitted = geo.fit_segment(start, end, about.duration_s)
    if isinstance(fitted, Reason):
        return fitted
    return Place(
        kind="segment",
        geometry={"start": fitted[0], "end": fitted[1]},
        said={"start": start, "end": end},
        coordinates=f"{fitted[0]:.3f} {fitted[1]:.3f}",
    )


def _span(start: int, end: int, text: str, nuls: Sequence[int]) -> Place | Reason:
    fitted = geo.fit_span(start, end, text)
    if isinstance(fitted, Reason):
        return fitted
    # Offsets move by what is taken out of the text before them.
    start, end = (offset - bisect_left(nuls, offset) for offset in fitted)
    if start == end:
        return Reason.EMPTY
    there = text[slice(*fitted)].replace("\0", "") if end - start <= MAX_QUOTE else None
    place = {"start": start, "end": end}
    return Place(kind="span", geometry=place, said=place, coordinates=f"{start} {end}", text=there)
