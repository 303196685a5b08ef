"""Which hints this process is following now, so that it never takes more than it can start."""

from collections import Counter
from threading import Lock
from uuid import UUID


class Slots:
    """Held slots by message id. Safe for threads.

    ``run_jobs`` hints are counted against the worker's slots; ``refresh_label_stats`` has a thread
    of its own beside them and is followed once at a time.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: dict[str, UUID | None] = {}

    def take(self, message_id: str, post_processor_id: UUID | None) -> None:
        """Note that a hint was handed to a thread."""
        with self._lock:
            self._held[message_id] = post_processor_id

    def give(self, message_id: str) -> None:
        """Note that its thread is free again; a second time is harmless."""
        with self._lock:
            self._held.pop(message_id, None)

    @property
    def is_refreshing(self) -> bool:
        """Whether a refresh of the label stats is under way."""
        with self._lock:
            return None in self._held.values()

    def running(self) -> Counter[UUID]:
        """Slots held by post-processor; its total is the number of busy slots."""
        with self._lock:
            return Counter(held for held in self._held.values() if held is not None)
