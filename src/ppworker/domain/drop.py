"""Names why a prediction did not become an annotation, so that none vanishes without a reason."""

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum


class Reason(StrEnum):
    """Why a prediction was dropped; the words are shown to users and counted on the job."""

    MALFORMED = "malformed"
    """The element of the raw answer has not the shape its task asks for."""
    BAD_SCORE = "bad_score"
    """The score is no number between 0 and 1."""
    BAD_GEOMETRY = "bad_geometry"
    """The box, polygon, span or segment is missing, or is not made of the numbers it needs."""
    NOT_ASKED = "not_asked"
    """The post-processor writes text only."""
    BELOW_THRESHOLD = "below_threshold"
    UNSCORED = "unscored"
    """There is no score to hold against the threshold, and the post-processor asks for one."""
    NOT_TOP = "not_top"
    """The dataset takes one label per item, and a better prediction stands."""
    MAPPED_TO_NOTHING = "mapped_to_nothing"
    BAD_LABEL = "bad_label"
    """The label is missing, blank or too long."""
    UNKNOWN_LABEL = "unknown_label"
    """The label does not exist, and the post-processor may not create it."""
    LABEL_CAP = "label_cap"
    """The label would be one new label too many."""
    OUTSIDE = "outside"
    """The place lies outside the image, the pages, the text or the recording."""
    ZERO_AREA = "zero_area"
    EMPTY = "empty"
    """The span or segment has no length."""
    SPAN_MISMATCH = "span_mismatch"
    """The text at the span is not the text the model quotes."""
    TEXT_TOO_LONG = "text_too_long"
    """The new text of the item has more bytes than a text may have."""
    TEXT_EDITED = "text_edited"
    """The item's text is a person's; the model's is kept beside it."""
    UNSUPPORTED = "unsupported"
    """The kind of annotation cannot be stored."""
    DUPLICATE = "duplicate"
    """Another prediction of the same answer says the same, with a score as good or better."""
    OUTRANKED = "outranked"
    """The item's one label is a person's, or that of a post-processor of higher order."""
    DELETED_BY_PERSON = "deleted_by_person"
    """A person has deleted this very suggestion before."""


def tally(reasons: Counter[Reason]) -> dict[str, int]:
    """Count per reason as plain JSON-ready words, in order of the words; zeros left out."""
    return {str(reason): reasons[reason] for reason in sorted(reasons) if reasons[reason]}


def add_counts(*counts: Mapping[str, int]) -> dict[str, int]:
    """Sum of counts per reason, in order of the words: a job's drops over all its steps."""
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(sorted(total.items()))
