"""Keeps this process's leases alive: one statement a beat, whatever their number."""

import logging
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from uuid import UUID

from ppworker.errors import StoreUnavailable
from ppworker.store.jobs import ClaimedJob

log = logging.getLogger(__name__)

BEATS_PER_LEASE = 3
"""Renewals within the life of a lease, so that one or two may fail."""


class Heartbeat:
    """The leases this process holds, and the thread that renews them.

    Args:
        extend: renews leases given as job id to token and returns the ids of those that are lost.
        beat_seen: marks this process as alive in the register of workers; called at each beat.
        lease_s: life of a lease in seconds.
        turned: told after each beat whether it succeeded.
        lost: told the post-processor's name for each lease that was found to be lost.
    """

    def __init__(
        self,
        extend: Callable[[Mapping[UUID, int]], set[UUID]],
        beat_seen: Callable[[], None],
        *,
        lease_s: float,
        turned: Callable[[bool], None] = lambda _: None,
        lost: Callable[[Sequence[str]], None] = lambda _: None,
    ) -> None:
        self._extend = extend
        self._beat_seen = beat_seen
        self._period_s = lease_s / BEATS_PER_LEASE
        self._turned = turned
        self._lost = lost
        self._lock = threading.Lock()
        self._held: dict[UUID, tuple[UUID, UUID, int]] = {}
        self._names: dict[UUID, str] = {}
        self._ended = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def soon(self) -> None:
        """Beat now instead of at the next turn."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread; waits for a beat in flight."""
        self._ended.set()
        self._wake.set()
        self._thread.join(timeout=5)

    @contextmanager
    def holding(
        self, post_processor_id: UUID, jobs: Sequence[ClaimedJob], *, name: str = ""
    ) -> Iterator[None]:
        """Keep the leases of a batch alive while it runs; ``name`` is the post-processor's."""
        with self._lock:
            self._names[post_processor_id] = name
            for job in jobs:
                self._held[job.id] = (post_processor_id, job.item_id, job.lease_token)
        try:
            yield
        finally:
            with self._lock:
                for job in jobs:
                    self._held.pop(job.id, None)

    def held(self) -> dict[UUID, tuple[UUID, UUID, int]]:
        """Leases held now: job to (post-processor, item, token)."""
        with self._lock:
            return dict(self._held)

    def in_progress(self) -> Counter[str]:
        """Leases held now by the names of their post-processors."""
        with self._lock:
            return Counter(self._names[id_] for id_, _, _ in self._held.values())

    def beat(self) -> None:
        """Renew every lease once and forget those that are lost."""
        held = self.held()
        self._beat_seen()
        if not held:
            return
        lost = self._extend({id_: token for id_, (_, _, token) in held.items()})
        if lost:
            with self._lock:
                # Only the lease that was asked about: its batch may have ended meanwhile, and the
                # job may have been claimed anew here.
                gone = [id_ for id_ in lost if self._held.get(id_) == held[id_]]
                for id_ in gone:
                    del self._held[id_]
            if gone:
                log.warning("%d leases are lost; their answers will be refused", len(gone))
                self._lost([self._names[held[id_][0]] for id_ in gone])

    def _run(self) -> None:
        failures = 0
        while True:
            self._wake.wait(self._period_s * random.uniform(0.8, 1.0))  # noqa: S311
            self._wake.clear()
            if self._ended.is_set():
                return
            is_renewed = False
            try:
                self.beat()
                is_renewed = True
            except StoreUnavailable as error:
                failures += 1
                if failures == 1:
                    log.warning("leases were not renewed: %s", error)
            except Exception:
                log.exception("leases were not renewed")
            else:
                failures = 0
            self._turned(is_renewed)
