"""Fits places that models name into the item they belong to, or tells why they do not fit.

Conventions of `ppworker.domain.inference`: pixels of the upright image with origin top left, spans
half-open in code points, segments half-open in seconds.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ppworker.domain.drop import Reason

TOLERANCE_PX = 2.0
"""Pixels a place may stick out of its image and still be clamped; models round."""
TOLERANCE_SHARE = 0.01
"""The same as a share of the side; the larger of the two holds."""
MAX_SIDE_PX = 1e7
"""Largest believable coordinate where the size of the image is not known."""
MAX_DURATION_S = 1e7
"""Latest believable second where the duration is not known."""
MAX_PAGES = 100_000
"""Most believable pages where their number is not known."""

Point = tuple[float, float]


def number(value: Any) -> float | None:
    """A finite float for any JSON number, None for everything else (true and false included)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def whole_number(value: Any) -> int | None:
    """An int for a JSON number without fraction, None for everything else."""
    converted = number(value)
    return int(converted) if converted is not None and converted.is_integer() else None


def read_box(value: Any) -> list[float] | None:
    """Four finite numbers ``[x1, y1, x2, y2]`` with x1 <= x2 and y1 <= y2, else None."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 4:  # noqa: PLR2004
        return None
    box = [side for side in map(number, value) if side is not None]
    return box if len(box) == 4 and box[0] <= box[2] and box[1] <= box[3] else None  # noqa: PLR2004


def read_polygon(value: Any) -> list[Point] | None:
    """At least three ``[x, y]`` of finite numbers, else None."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) < 3:  # noqa: PLR2004
        return None
    points: list[Point] = []
    for pair in value:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:  # noqa: PLR2004
            return None
        x, y = number(pair[0]), number(pair[1])
        if x is None or y is None:
            return None
        points.append((x, y))
    return points


def fit_box(box: Sequence[float], width: int | None, height: int | None) -> list[float] | Reason:
    """Box clamped into the image; beyond the tolerance it does not fit."""
    corners = _fit_points([(box[0], box[1]), (box[2], box[3])], width, height)
    if isinstance(corners, Reason):
        return corners
    (x1, y1), (x2, y2) = corners
    return [x1, y1, x2, y2] if x2 > x1 and y2 > y1 else Reason.ZERO_AREA


def fit_polygon(
    points: Sequence[Point], width: int | None, height: int | None
) -> list[Point] | Reason:
    """Polygon with each point clamped into the image; beyond the tolerance it does not fit."""
    fitted = _fit_points(points, width, height)
    if isinstance(fitted, Reason):
        return fitted
    (x0, y0) = fitted[0]
    # Triangles of the fan, unsigned: the signed area of a figure of eight would be zero too.
    area = sum(
        abs((xa - x0) * (yb - y0) - (xb - x0) * (ya - y0))
        for (xa, ya), (xb, yb) in pairwise(fitted[1:])
    )
    return fitted if area > 0 else Reason.ZERO_AREA


def fit_span(start: int, end: int, text: str) -> tuple[int, int] | Reason:
    """Span that lies inside the text; nothing is clamped, a shifted span would mark other words."""
    if end <= start:
        return Reason.EMPTY
    if start < 0 or end > len(text):
        return Reason.OUTSIDE
    return start, end


def fit_segment(start: float, end: float, duration_s: float | None) -> tuple[float, float] | Reason:
    """Segment clamped into the recording; models of fixed windows end far behind the last sound."""
    if end <= start:
        return Reason.EMPTY
    if end <= 0 or start >= (MAX_DURATION_S if duration_s is None else duration_s):
        return Reason.OUTSIDE
    return max(start, 0.0), min(end, MAX_DURATION_S if duration_s is None else duration_s)


def bounds(points: Sequence[Point]) -> list[float]:
    """Smallest box ``[x1, y1, x2, y2]`` around the points."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return [min(xs), min(ys), max(xs), max(ys)]


def box_coordinates(box: Sequence[float], width: int | None, height: int | None) -> str:
    """Public string of a box: centre x, centre y, width, height relative to the image, 0 to 1.

    Empty where the size of the image is not known.
    """
    if not width or not height:
        return ""
    x1, y1, x2, y2 = box
    shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return " ".join(f"{share:.6f}" for share in shares)


def _fit_points(
    points: Sequence[Point], width: int | None, height: int | None
) -> list[Point] | Reason:
    fitted: list[Point] = []
    for x, y in points:
        fitted_x, fitted_y = _clamp(x, width), _clamp(y, height)
        if fitted_x is None or fitted_y is None:
            return Reason.OUTSIDE
        fitted.append((fitted_x, fitted_y))
    return fitted


def _clamp(value: float, side: int | None) -> float | None:
    tolerance = TOLERANCE_PX if side is None else max(TOLERANCE_PX, TOLERANCE_SHARE * side)
    upper = MAX_SIDE_PX if side is None else float(side)
    if not -tolerance <= value <= upper + tolerance:
        return None
    return min(max(value, 0.0), upper)
