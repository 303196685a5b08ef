"""Turns places on pictures from one format's numbers into another's: pixels, shares, percent.

A box is ``[x1, y1, x2, y2]``, as everywhere in this project; points are ``[x, y]``.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ppworker.domain import geometry as geo
from ppworker.formats.base import Mark, Record

Box = list[float]
Points = list[list[float]]

PICTURES = frozenset(
    {"jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "avif", "heic", "jfif", "mpo"}
)
"""Extensions of pictures."""
_USUAL = {"image/png": "png", "image/gif": "gif", "image/webp": "webp", "image/bmp": "bmp",
          "image/tiff": "tiff", "image/avif": "avif", "image/heic": "heic"}  # fmt: skip
_DIGITS = 12
"""Behind the point of a share: beyond a millionth of a pixel for any picture."""
_PARTS, _TRIPLE, _VISIBLE = 4, 3, 2


def is_picture(record: Record) -> bool:
    """Whether an exported item is a picture with a file."""
    return bool(record.content_sha256) and record.media_type.startswith("image/")


def is_picture_name(name: str) -> bool:
    """Whether an archive's member is a picture, by its name."""
    return name.rpartition(".")[2].lower() in PICTURES


def file_name(record: Record) -> str:
    """What the file of an exported picture is called, with the extension of a picture."""
    ending = record.file_name.rpartition(".")[2].lower()
    if ending in PICTURES:
        return record.file_name
    return f"{record.file_name}.{_USUAL.get(record.media_type, 'jpg')}"


def box_in_pixels(mark: Mark, record: Record) -> Box | None:
    """The box of an exported mark; None where it has none, or not in pixels."""
    box = geo.read_box((mark.geometry or {}).get("box"))
    if box is not None:
        return box
    if not record.width or not record.height:
        return None
    return in_pixels(box_of_coordinates(mark.coordinates), record.width, record.height)


def box_in_shares(mark: Mark, record: Record) -> Box | None:
    """The same as shares of the picture; from its coordinates where the size is not known."""
    box = geo.read_box((mark.geometry or {}).get("box"))
    shares = None if box is None else in_shares(box, record)
    return shares or box_of_coordinates(mark.coordinates)


def in_shares(box: Box, record: Record) -> Box | None:
    """A box in pixels as shares of the picture, if its size is known."""
    width, height = record.width, record.height
    if not width or not height:
        return None
    return [box[0] / width, box[1] / height, box[2] / width, box[3] / height]


def points_of(mark: Mark) -> Points | None:
    """The points of an exported polygon, in pixels."""
    points = geo.read_polygon((mark.geometry or {}).get("points"))
    return None if points is None else [[x, y] for x, y in points]


def keypoints_of(mark: Mark) -> Points | None:
    """The points ``[x, y, visibility]`` of exported keypoints; what says nothing is visible."""
    given = (mark.geometry or {}).get("points")
    if not isinstance(given, list | tuple) or not given:
        return None
    found = []
    for point in given:
        if not isinstance(point, list | tuple) or len(point) not in {2, 3}:
            return None
        numbers = [geo.number(each) for each in point]
        known = [number for number in numbers if number is not None]
        if len(known) != len(point):
            return None
        found.append([*known[:2], known[2] if len(known) == _TRIPLE else float(_VISIBLE)])
    return found


def around(points: Points) -> Box:
    """The smallest box around points."""
    return geo.bounds([(point[0], point[1]) for point in points])


def area(points: Points) -> float:
    """Area inside a polygon that does not cross itself."""
    closed = [*points, points[0]]
    return abs(sum(xa * yb - xb * ya for (xa, ya), (xb, yb) in pairwise(closed))) / 2


def in_pixels(box: Box | None, width: int, height: int) -> Box | None:
    """A box in shares, in pixels."""
    if box is None:
        return None
    return [box[0] * width, box[1] * height, box[2] * width, box[3] * height]


def from_corner(values: Sequence[Any], scale: float = 1) -> Box | None:
    """Box of ``x y width height`` with x, y the top left corner; None where they are no numbers.

    Also where the size is negative or none: an importer could not tell what was meant.
    """
    numbers = [geo.number(value) for value in values]
    known = [number / scale for number in numbers if number is not None]
    if len(known) != _PARTS or len(numbers) != _PARTS or known[2] <= 0 or known[3] <= 0:
        return None
    return [known[0], known[1], known[0] + known[2], known[1] + known[3]]


def corner_of_seen(points: Points) -> list[float]:
    """``x y width height`` around those keypoints that are labelled, or around all."""
    x1, y1, x2, y2 = around([point[:2] for point in points if point[2] > 0] or points)
    return [x1, y1, x2 - x1, y2 - y1]


def is_flat(values: Sequence[Any]) -> bool:
    """Whether ``x y width height`` are numbers, but cover nothing."""
    numbers = [number for number in map(geo.number, values) if number is not None]
    return len(numbers) == len(values) == _PARTS and (numbers[2] <= 0 or numbers[3] <= 0)


def from_middle(x: float, y: float, w: float, h: float) -> Box | None:
    """Box of ``x y width height`` with x, y the middle; None where it covers nothing."""
    if w <= 0 or h <= 0:
        return None
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def pairs(values: Any) -> Points | None:
    """Polygon of a flat list ``x y x y ...``; None where it is none."""
    if not isinstance(values, list | tuple) or len(values) % 2:
        return None
    points = geo.read_polygon([[x, y] for x, y in zip(values[::2], values[1::2], strict=True)])
    return None if points is None else [[x, y] for x, y in points]


def turned(box: Box, degrees: float) -> Points:
    """Corners of a box that is turned clockwise about its top left corner."""
    x, y, turn = box[0], box[1], math.radians(degrees % 360)
    cos, sin = math.cos(turn), math.sin(turn)
    w, h = box[2] - x, box[3] - y
    return [
        [x + dx * cos - dy * sin, y + dx * sin + dy * cos]
        for dx, dy in ((0.0, 0.0), (w, 0.0), (w, h), (0.0, h))
    ]


def share(value: float) -> str:
    """A share as text, without exponent, as every reader of such files understands it."""
    return f"{value:.{_DIGITS}f}".rstrip("0").rstrip(".")


def middle(box: Box) -> tuple[float, float, float, float]:
    """``x y width height`` of a box with x, y its middle."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]


def box_of_coordinates(coordinates: str) -> Box | None:
    """The box in shares that a public string of coordinates says; None where it says none."""
    parts = coordinates.split(None, _PARTS)
    if len(parts) != _PARTS:
        return None
    try:
        x, y, w, h = map(float, parts)
    except ValueError:
        return None
    is_finite = all(map(math.isfinite, (x, y, w, h)))
    return from_middle(x, y, w, h) if is_finite else None
