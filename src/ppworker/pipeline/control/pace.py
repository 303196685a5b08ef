"""Decides how many units of work a chunk takes, from the time that the last ones took.

A chunk costs something before its first unit: a look at the database, a file that is opened. Time
divided by units alone would take that for the price of the units, make the next chunk smaller,
and so find them dearer still, down to one unit at a time. So both are told apart, by a line
through what was measured.
"""

from collections import deque

from ppworker.store import operations

CHUNK_S = 0.5
"""Seconds that one chunk should last at most: others wait for the rows it locks."""
MOST_UNITS = 2_000
_CHUNKS_PER_LEASE = 6
"""At least so many chunks fit into a lease, twice as many as must."""
_GROWTH = 4
_REMEMBERED = 6
_LEAST_S = 1e-6


class Pace:
    """Learns from each chunk.

    Args:
        attempts: the operation's claims since its last progress. Each try without progress begins
            four times smaller: what spoils a chunk, be it memory, then stands alone at last, and
            what lies before it is done.
        lease_s: seconds of a lease.
    """

    def __init__(self, attempts: int, lease_s: float) -> None:
        self._longest_s = lease_s / _CHUNKS_PER_LEASE
        self._target_s = min(CHUNK_S, self._longest_s)
        self._seen: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)
        self.units = max(1, operations.FIRST_CHUNK >> (2 * (attempts - 1)))

    def learn(self, units: int, seconds: float) -> None:
        """Take note of a chunk, and set the units of the next one."""
        self._seen.append((max(units, 1), seconds))
        each_s, fixed_s = self._costs()
        # Where the fixed part alone fills the time, the chunk lasts twice as long as it: no
        # smaller one would be done sooner to speak of.
        room_s = max(self._target_s - fixed_s, min(fixed_s, self._longest_s - fixed_s))
        fitting = int(max(room_s, 0.0) / each_s)
        self.units = max(1, min(fitting, self.units * _GROWTH, MOST_UNITS))

    def _costs(self) -> tuple[float, float]:
        """Seconds of one unit, and of a chunk without any: the line through what was seen."""
        count = len(self._seen)
        mean_units = sum(units for units, _ in self._seen) / count
        mean_s = sum(seconds for _, seconds in self._seen) / count
        spread = sum((units - mean_units) ** 2 for units, _ in self._seen)
        units, seconds = self._seen[-1]
        if not spread:
            return max(seconds / units, _LEAST_S), 0.0
        slope = sum((u - mean_units) * (s - mean_s) for u, s in self._seen) / spread
        if slope <= 0:  # larger ones were not slower: the units cost next to nothing
            return _LEAST_S, min(mean_s, seconds)
        fixed_s = min(max(mean_s - slope * mean_units, 0.0), seconds)
        return max((seconds - fixed_s) / units, slope / _GROWTH, _LEAST_S), fixed_s
