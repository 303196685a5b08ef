"""Label ids by name, remembered for a few seconds so that a batch need not read them.

A stale entry does no harm: a label that is gone is found missing under its lock and counted, and
an unknown name is decided in the transaction that creates labels.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Collection
from uuid import UUID

from ppworker.store import labels
from ppworker.store.db import Database

_FRESH_S = 5.0
_VERSIONS = 256


class LabelCache:
    """Names of labels by version, shared by the slots of a process."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._entries: OrderedDict[UUID, tuple[float, dict[str, UUID]]] = OrderedDict()

    def get(
        self, version_ids: Collection[UUID], *, fresh: bool = False
    ) -> dict[UUID, dict[str, UUID]]:
        """Label ids by name for each version; ``fresh`` reads them now."""
        now = time.monotonic()
        found: dict[UUID, dict[str, UUID]] = {}
        if not fresh:
            with self._lock:
                for version_id in version_ids:
                    entry = self._entries.get(version_id)
                    if entry and now - entry[0] < _FRESH_S:
                        found[version_id] = entry[1]
        missing = [version_id for version_id in version_ids if version_id not in found]
        if missing:
            with self._db.look() as tx:
                read = labels.names_by_version(tx, missing)
            found |= read
            with self._lock:
                for version_id, names in read.items():
                    self._entries[version_id] = (now, names)
                    self._entries.move_to_end(version_id)
                while len(self._entries) > _VERSIONS:
                    self._entries.popitem(last=False)
        return found

    def forget(self, version_id: UUID) -> None:
        """Drop what is remembered of a version, because it was just changed."""
        with self._lock:
            self._entries.pop(version_id, None)
