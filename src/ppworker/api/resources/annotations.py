"""Annotations as they stand inside items."""

from typing import Any

from ppworker.api.wire import Base, OptionalText, Text


class AnnotationAnswer(Base):
    """What somebody or some model said about an item.

    The contract knows label, item, split, coordinates and user; the rest is ours.
    """

    label_id: Text
    item_id: Text
    split_id: Text
    coordinates: Text = ""
    user_id: Text = ""
    kind: str
    """class, bbox, polygon, keypoints, span or segment."""
    text: Text = ""
    page: int | None = None
    confidence: float | None = None
    source: str
    """human, model, inference or import."""
    review: str
    """suggested, accepted, edited or rejected."""
    post_processor_id: OptionalText = None
    model_version: Text = ""


def shown(row: Any, *, split_id: str) -> AnnotationAnswer:
    """An annotation as clients read it.

    Args:
        row: of the table.
        split_id: a split of its item, where it does not know one itself.
    """
    return AnnotationAnswer.of(
        id=row.id,
        created_at=row.created_at,
        updated_at=row.updated_at,
        label_id=row.label_id,
        item_id=row.item_id,
        split_id=row.split_id or split_id,
        coordinates=row.coordinates,
        user_id=row.user_id,
        kind=row.kind,
        text=row.text,
        page=row.page,
        confidence=row.score,
        source=row.source,
        review=row.review,
        post_processor_id=row.post_processor_id,
        model_version=row.model_version,
    )
