"""Keeps this process's leases alive: one statement a beat, whatever their number.

A lease that could not be renewed is in doubt by this process's own monotonic clock before the
server's clock ends it. Nothing new is begun under it until the server has confirmed it.
"""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from uuid import UUID

from ppworker.errors import StoreUnavailable
from ppworker.store.claims import ClaimedJob

log = logging.getLogger(__name__)

BEATS_PER_LEASE = 3
"""Renewals within the life of a lease, so that one or two may fail."""
_SURE = 0.9
"""Share of its life for which a lease is sure: the rest is for the way to the server and clocks
that do not run quite alike."""


def beat_limit_s(lease_s: float) -> float:
    """Seconds that each of the two statements of a beat may take before the link is cut, so that
    a silent server costs a beat and not the thread."""
    return max(1.0, lease_s / 4)


class Heartbeat:
    """The leases this process holds, and the thread that renews them.

    Args:
        extend: renews leases given as job id to token and returns the ids of those that are lost.
        beat_seen: marks this process as alive in the register of workers; called at each beat. Its
            value is the shortest lease of any worker, in seconds, None where that is not known.
        lease_s: life of a lease in seconds.
        turned: told after each beat whether it succeeded.
        lost: told the post-processor's name for each lease that was found to be lost.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        extend: Callable[[Mapping[UUID, int]], set[UUID]],
        beat_seen: Callable[[], float | None],
        *,
        lease_s: float,
        turned: Callable[[bool], None] = lambda _: None,
        lost: Callable[[Sequence[str]], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._extend = extend
        self._beat_seen = beat_seen
        self._lease_s = lease_s
        self._period_s = lease_s / BEATS_PER_LEASE
        self._sure_s = lease_s * _SURE
        self._turned = turned
        self._lost = lost
        self._lock = threading.Lock()
        self._held: dict[UUID, tuple[UUID, UUID, int]] = {}
        self._names: dict[UUID, str] = {}
        self._renewed_at: dict[UUID, float] = {}
        self._ending: set[tuple[UUID, int]] = set()
        self._ended = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def soon(self) -> None:
        """Beat now instead of at the next turn."""
        self._wake.set()

    def stop(self, *, wait_s: float = 5.0) -> None:
        """End the thread; waits up to ``wait_s`` seconds for a beat in flight."""
        self._ended.set()
        self._wake.set()
        self._thread.join(wait_s)

    @contextmanager
    def holding(
        self,
        post_processor_id: UUID,
        jobs: Sequence[ClaimedJob],
        *,
        name: str = "",
        since: float | None = None,
    ) -> Iterator[None]:
        """Keep the leases of a batch alive while it runs.

        Args:
            post_processor_id: whose jobs they are.
            jobs: the batch.
            name: of the post-processor.
            since: when the claim was sent, by the clock; now when it is not known.
        """
        with self._lock:
            since = self._clock() if since is None else since
            self._names[post_processor_id] = name
            for job in jobs:
                self._held[job.id] = (post_processor_id, job.item_id, job.lease_token)
                self._renewed_at[job.id] = since
        try:
            yield
        finally:
            with self._lock:
                for job in jobs:
                    self._ending.discard((job.id, job.lease_token))
                    # Not a newer lease: another slot may have claimed what this batch lost.
                    if job.id in self._held and self._held[job.id][2] == job.lease_token:
                        del self._held[job.id], self._renewed_at[job.id]

    def ending(self, jobs: Sequence[ClaimedJob]) -> None:
        """Note that the ends of these jobs are about to be written, within their ``holding``.

        They are renewed as before, for that may have to wait; but whether a lease was lost is told
        by whoever writes. A beat finds those lost that were written just now.
        """
        with self._lock:
            self._ending.update((job.id, job.lease_token) for job in jobs)

    def held(self) -> dict[UUID, tuple[UUID, UUID, int]]:
        """Leases held now: job to (post-processor, item, token)."""
        with self._lock:
            return dict(self._held)

    def in_progress(self) -> Counter[str]:
        """Leases held now by the names of their post-processors."""
        with self._lock:
            return Counter(self._names[id_] for id_, _, _ in self._held.values())

    def in_doubt(self) -> set[UUID]:
        """Leases that the server may have ended, by this process's own clock."""
        before = self._clock() - self._sure_s
        with self._lock:
            return {id_ for id_, at in self._renewed_at.items() if at < before}

    def confirmed(self, leases: Mapping[UUID, int]) -> set[UUID]:
        """Of these leases, job to token, those that are still ours; where one is in doubt, the
        server is asked.

        Raises:
            StoreUnavailable: it cannot be asked.
        """
        if not self.in_doubt().isdisjoint(leases):
            self._renew(self.held())
        with self._lock:
            return {
                id_
                for id_, token in leases.items()
                if id_ in self._held and self._held[id_][2] == token
            }

    def beat(self) -> None:
        """Renew every lease once, forget those that are lost, and be seen.

        As often as the shortest lease asks: others tell from it how long the server was away.
        """
        self._renew(self.held())
        shortest_s = min(self._beat_seen() or self._lease_s, self._lease_s)
        self._period_s = shortest_s / BEATS_PER_LEASE

    def _renew(self, held: Mapping[UUID, tuple[UUID, UUID, int]]) -> None:
        if not held:
            return
        at = self._clock()  # before it is sent: by the server's clock it ends later
        lost = self._extend({id_: token for id_, (_, _, token) in held.items()})
        with self._lock:
            # Only the lease that was asked about: its batch may have ended meanwhile, and the
            # job may have been claimed anew here.
            asked = [id_ for id_, lease in held.items() if self._held.get(id_) == lease]
            gone = [id_ for id_ in asked if id_ in lost]
            self._renewed_at.update(dict.fromkeys(asked, at))
            for id_ in gone:
                del self._held[id_], self._renewed_at[id_]
            gone = [id_ for id_ in gone if (id_, held[id_][2]) not in self._ending]
        if gone:
            log.warning("%d leases are lost; their answers will be refused", len(gone))
            self._lost([self._names[held[id_][0]] for id_ in gone])

    def _run(self) -> None:
        failures, doubted = 0, 0
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
            if (in_doubt := len(self.in_doubt())) > doubted:
                log.warning("%d leases are in doubt; no model is asked under them", in_doubt)
            doubted = in_doubt
            self._turned(is_renewed)
