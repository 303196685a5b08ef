"""Decides whether a kept answer may be applied again, and whether its text may be written again.

An answer holds for the input that the model saw. Its text holds as long as nobody wrote another one
over it.
"""

from dataclasses import dataclass
from enum import StrEnum

from ppworker.domain.post_processor import Reads, input_revision


class Skip(StrEnum):
    """Why a kept answer was left as it is; the words are shown to users and counted."""

    LIVE_JOB = "live_job"
    """A job of the same item and post-processor is not over; its end brings today's settings."""
    INPUT_CHANGED = "input_changed"
    """The item's file or text is not what the model saw."""
    TEXT_CHANGED = "text_changed"
    """The answer marks places in its own text, over which another one was written since."""
    ITEM_DELETED = "item_deleted"
    UNREADABLE = "unreadable"
    """The answer cannot be read for the post-processor's task of today."""
    REFUSED_VALUES = "refused_values"
    """PostgreSQL refused values of the answer, so not all of it was kept."""


@dataclass(slots=True, kw_only=True)
class Kept:
    """What is known of a kept answer and of the item it was given for."""

    input_revision: str
    """Hash of what the model read."""
    text_after: str | None
    """Hash of the item's text once the answer was written; None where it had none."""
    content_sha256: str | None
    """Of the item's file, now."""
    text_sha256: str | None
    """Of the item's text, now."""
    own_text_sha256: str | None
    """Of the text that the answer holds; None where it holds none."""

    @property
    def is_text_untouched(self) -> bool:
        """Whether the text is as the answer left it, or is the answer's own."""
        return self.text_sha256 in {self.text_after, self.own_text_sha256}


def input_holds(kept: Kept, reads: Reads) -> bool:
    """Whether the item is what the model saw, but for what this very answer changed of it."""
    now = input_revision(reads, kept.content_sha256, kept.text_sha256)
    if now == kept.input_revision:
        return True
    # The answer of a reader of text may have replaced the text it read.
    has_read_text = reads == "text" or (reads == "any" and kept.content_sha256 is None)
    return has_read_text and kept.own_text_sha256 is not None and kept.is_text_untouched
