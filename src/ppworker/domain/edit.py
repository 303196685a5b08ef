"""Decides what a person's edit does to annotations: what it places, removes, reviews or outdates.

Models never come here, and people never go through `ppworker.domain.replace`: so a person may
change whatever stands, and a model only its own unreviewed output.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from ppworker.domain.coordinates import About, Place, locate
from ppworker.domain.drop import Reason

Action = Literal["accept", "reject"]
"""What a reviewer says of a suggestion."""
Source = Literal["human", "model", "inference", "import"]

_SPAN_PARTS = 2


class Verdict(StrEnum):
    """What a review does to one annotation; the words are counted and shown."""

    CHANGED = "changed"
    ALREADY = "already"
    """It is as the reviewer says; nothing is written."""
    CONFLICT = "conflicts"
    """A person decided otherwise before; that stands until it is changed by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Where a person puts an annotation, as the client writes it."""

    coordinates: str = ""
    page: int | None = None
    """Of a document, from 0; places of later pages have no size to be held against."""
    text: str | None = None
    """What stands or is said at the place; a span quotes the item instead."""


def place(wanted: Wanted, about: About) -> Place | Reason:
    """Where an annotation lies on an item.

    The client's own string is kept as it came unless it had to be fitted into the item, so that
    what is sent is what is read; what has no meaning here is kept too, as kind ``class``.
    """
    if wanted.page:
        about = About(family=about.family, text=about.text, duration_s=about.duration_s)
    found = locate(wanted.coordinates, about)
    if isinstance(found, Reason):
        return found
    if found.said == found.geometry:
        found.coordinates = wanted.coordinates
    if found.kind != "span":
        found.text = wanted.text
    return found


def review_after_edit(source: str) -> Literal["accepted", "edited"]:
    """The review state of an annotation whose label, place or text a person has changed.

    What a model predicted keeps its source, model and score: it is edited, not anybody's own.
    """
    return "accepted" if source == "human" else "edited"


def review(action: Action, state: str) -> Verdict:
    """What a review does to an annotation in a review state.

    A review decides suggestions only. Who accepts twice changes nothing; who says the opposite of
    what was decided is told so, and can still change or delete the annotation itself.
    """
    if state == "suggested":
        return Verdict.CHANGED
    decided = "accepted" if action == "accept" else "rejected"
    return Verdict.ALREADY if state == decided else Verdict.CONFLICT


def is_stale(kind: str, coordinates: str, quoted: str | None, text: str | None) -> bool:
    """Whether a span marks a place where its item's text is not what it was put on.

    A changed text keeps its spans: nobody can say where they belong now, and a person's work is
    not thrown away. They are shown as stale until somebody puts them right.
    """
    if kind != "span":
        return False
    parts = coordinates.split(None, _SPAN_PARTS)
    if len(parts) != _SPAN_PARTS or not all(part.isdecimal() for part in parts):
        return False
    start, end = (int(part) for part in parts)
    if text is None or end > len(text):
        return True
    # The quote of a very long span is not stored, so only its end can tell.
    return quoted is not None and text[start:end] != quoted
