"""What the pipeline works with, handed over by hand and passed first."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from ppworker.domain.events import Event
from ppworker.settings import Settings
from ppworker.store.blobs import BlobStore
from ppworker.store.db import Database


def _no_hint(post_processor_ids: Iterable[UUID]) -> None:
    """Nobody to wake: workers poll."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deps:
    """The collaborators of every step."""

    db: Database
    blobs: BlobStore
    settings: Settings
    emit: Callable[[Sequence[Event]], None]
    """Tell what happened, after it was committed. Never raises."""
    hint: Callable[[Iterable[UUID]], None] = _no_hint
    """Say that post-processors may have due jobs, after COMMIT. Never raises, may be lost."""
    worker_id: UUID = field(default_factory=uuid4)
    """This process, random per boot."""
