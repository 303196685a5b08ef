"""Keeps label stats small and provably right: folds deltas, compares with a recount, repairs."""

import time
from collections.abc import Sequence
from uuid import UUID

from ppworker.domain.events import StatsRebuilt
from ppworker.domain.stats import StatDelta
from ppworker.pipeline.deps import Deps
from ppworker.store import stats
from ppworker.store.db import Tx

_FOLD = 5_000
"""Most deltas one transaction folds."""


def fold(deps: Deps, *, most: int = 1_000_000) -> int:
    """Fold deltas into the base counters, transaction by transaction; returns how many.

    Any number of processes may fold at once: each takes deltas that nobody else holds.
    """
    total = 0
    while total < most:
        folded = deps.db.transact(lambda tx: stats.fold(tx, limit=_FOLD))
        total += folded
        if folded < _FOLD:
            break
    return total


def verify(deps: Deps, split_ids: Sequence[UUID]) -> list[stats.LabelStat]:
    """Differences between a recount and the stats of splits; empty means exact."""
    with deps.db.begin() as tx:
        return stats.find_drift(tx, split_ids)


def rebuild(deps: Deps, split_id: UUID) -> int:
    """Set a split's stats right by appending the difference to a recount; returns rows changed.

    Safe under full load: what others commit meanwhile brings its own deltas.
    """

    def work(tx: Tx) -> int:
        stats.lock_rebuild(tx, split_id)
        stats.allow_recount(tx)
        drift = stats.find_drift(tx, [split_id])
        stats.append_deltas(
            tx,
            [
                StatDelta(
                    split_id=row.split_id,
                    bucket=row.bucket,
                    label_id=row.label_id,
                    annotation_count=row.annotation_count,
                    item_count=row.item_count,
                )
                for row in drift
            ],
        )
        return len(drift)

    changed = deps.db.transact(work)
    if changed:
        deps.emit([StatsRebuilt(split_id=split_id, rows=changed)])
    return changed


def recount(deps: Deps, *, age_s: float, budget_s: float) -> int:
    """Compare the stats of splits with a recount, and set right what differs; returns rows changed.

    Begins with the split whose last recount is longest ago, and stops when the budget is used up:
    one that is large is recounted whole, and the others have their turn the next time. Nothing
    makes stats differ but a hand in the tables, or a fault of ours that must not stay unseen.

    Args:
        deps: the collaborators.
        age_s: seconds for which a recount is believed.
        budget_s: seconds after which no further split is begun.
    """
    changed, until = 0, time.monotonic() + budget_s
    while time.monotonic() < until:
        split_id = deps.db.transact(lambda tx: stats.next_recount(tx, age_s=age_s))
        if split_id is None:
            break
        with deps.db.begin() as tx:
            if not stats.try_recount(tx, split_id):
                continue
            stats.allow_recount(tx)
            is_exact = not stats.find_drift(tx, [split_id])
        if not is_exact:
            changed += rebuild(deps, split_id)
    return changed
