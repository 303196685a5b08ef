"""What no step may do, whoever takes it: told by comparing what it began with and what it left.

Nothing here calls the code under test: states, edges and counts are said again in their own words.
"""

from collections import defaultdict
from typing import Any, Literal
from uuid import UUID

from stateful.snapshot import Row, Snapshot

Actor = Literal["person", "reviewer", "worker", "operation"]
"""A reviewer is a person who decides of suggestions in bulk, and of nothing else."""

EDGES = {
    ("pending", "processing"),
    ("processing", "completed"),
    ("processing", "pending"),
    ("processing", "failed"),
    ("pending", "failed"),
    ("failed", "pending"),
}
COUNTED = {"finished", "transient_error", "rescued", "exhausted", "permanent_error", "crashed"}
"""Ends of attempts that leave the count as it is."""
GIVEN_BACK = {"released", "snoozed", "suspected"}
SAID = ("label_id", "kind", "geometry", "coordinates", "text", "page", "review", "deleted_at")
"""What a person sees of an annotation."""
LEASE = ("lease_owner", "batch_id", "lease_expires_at", "deadline_at", "started_at")


def check(
    before: Snapshot, after: Snapshot, actor: Actor, *, may_end: set[UUID], prunes: bool
) -> None:
    """Compare two moments.

    Args:
        before: what the step began with.
        after: what it left.
        actor: who took it; only a person changes what people said.
        may_end: processing jobs that the step may take out of that state.
        prunes: whether it removes old jobs that are over.
    """
    _jobs(before, after, may_end, prunes=prunes)
    _history(before, after)
    _tombstones(before, after)
    _answers(after)
    _nothing_is_refused(after)
    if actor != "person":
        _people(before, after, actor)


def _is_gone(before: Snapshot, after: Snapshot, row: Row) -> bool:
    """Whether what the row belongs to was taken away."""
    return (row.item_id, row.version_id) not in after.pairs


def _jobs(before: Snapshot, after: Snapshot, may_end: set[UUID], *, prunes: bool) -> None:
    for id_, old in before.jobs.items():
        new = after.jobs.get(id_)
        if new is None:
            deleted = after.processors[old.post_processor_id].deleted_at is not None
            is_let_go = old.status == "pending" and deleted
            is_let_go |= old.status in {"completed", "failed"} and prunes
            assert is_let_go or _is_gone(before, after, old), ("a job vanished", old)
            continue
        assert new.created_at == old.created_at
        edge = (old.status, new.status)
        assert old.status == new.status or edge in EDGES, ("an edge that is none", old, new)
        claims = int(edge == ("pending", "processing"))
        assert new.lease_token == old.lease_token + claims, ("the token did not count claims", new)
        if old.status == "processing":
            assert old.status == new.status or id_ in may_end, ("somebody else's job", old, new)
            if old.status == new.status:
                assert new.attempts == old.attempts
                assert [getattr(new, name) for name in LEASE if name != "lease_expires_at"] == [
                    getattr(old, name) for name in LEASE if name != "lease_expires_at"
                ], ("a lease changed hands", old, new)
        _attempts(old, new, after.attempts.get((id_, old.lease_token)))
    keys = [
        (job.item_id, job.version_id, job.post_processor_id)
        for job in after.jobs.values()
        if job.status in {"pending", "processing"}
    ]
    assert len(keys) == len(set(keys)), "two live jobs of one key"


def _attempts(old: Row, new: Row, ended: Row | None) -> None:
    """The count of attempts follows from the edge that was taken."""
    edge = (old.status, new.status)
    if edge == ("pending", "processing"):
        wanted = {old.attempts + 1}
    elif old.status == "processing" and new.status != "processing":
        assert ended is not None, ("an attempt ended without a trace", old, new)
        if ended.cause in COUNTED | {"cancelled"}:
            wanted = {old.attempts}
        elif ended.cause in GIVEN_BACK:
            wanted = {old.attempts - 1}
        else:
            assert ended.cause == "input_changed", ended
            wanted = {0}
    elif edge == ("failed", "pending"):
        wanted = {0}
        assert (new.reason, new.error, new.crash_count) == ("", "", 0), ("no fresh budget", new)
    elif edge == ("pending", "pending"):
        wanted = {old.attempts, 0}
    else:
        wanted = {old.attempts}
    assert new.attempts in wanted, ("attempts miscounted", edge, old.attempts, new.attempts, ended)
    assert 0 <= new.attempts <= new.max_attempts


def _history(before: Snapshot, after: Snapshot) -> None:
    for key, row in before.attempts.items():
        assert after.attempts.get(key) == row or key[0] not in after.jobs, ("history changed", row)
    for key in after.attempts.keys() - before.attempts.keys():
        old = before.jobs.get(key[0])
        assert old is not None, "history of a job that was not there"
        assert (old.status, old.lease_token) == ("processing", key[1]), ("false history", key, old)


def _tombstones(before: Snapshot, after: Snapshot) -> None:
    """What a person took away stays so, and the same prediction does not stand again."""
    stands: dict[tuple[Any, ...], UUID] = {}
    for row in after.annotations.values():
        if row.deleted_at is None and row.fingerprint is not None:
            stands[row.item_id, row.version_id, row.post_processor_id, row.fingerprint] = row.id
    for id_, old in before.annotations.items():
        if old.deleted_at is None:
            continue
        new = after.annotations.get(id_)
        if new is None:
            is_gone = _is_gone(before, after, old) or old.label_id not in after.labels
            assert is_gone, ("a tombstone vanished", old)
            continue
        assert new.deleted_at is not None, ("what a person took away is back", old)
        key = (old.item_id, old.version_id, old.post_processor_id, old.fingerprint)
        assert old.fingerprint is None or key not in stands, ("it came back as another row", old)


def _people(before: Snapshot, after: Snapshot, actor: Actor) -> None:
    """No machine changes what people said: annotations, reviews, texts."""
    for id_, old in before.annotations.items():
        is_open = old.review == "suggested" and (old.source == "model" or actor == "reviewer")
        if old.deleted_at is not None or is_open:
            continue
        new = after.annotations.get(id_)
        if new is None:
            is_gone = _is_gone(before, after, old) or old.label_id not in after.labels
            assert is_gone, ("a machine deleted what is not a model's suggestion", old)
        else:
            said = [getattr(old, name) for name in SAID]
            assert [getattr(new, name) for name in SAID] == said, ("a machine changed it", old, new)
    for id_, old in before.items.items():
        new = after.items.get(id_)
        if new is not None and old.text_edited:
            assert (new.text, new.text_edited) == (old.text, True), ("a person's text", old, new)


def _nothing_is_refused(after: Snapshot) -> None:
    """What the rules decide, PostgreSQL takes: no constraint has to be the last to say no."""
    for row in [*after.jobs.values(), *after.operations.values()]:
        assert row.reason not in {"refused_data", "step_failed", "invalid"}, (row.reason, row.error)


def _answers(after: Snapshot) -> None:
    """A suggestion that nobody looked at says what the kept answer says, and nothing else."""
    said: dict[tuple[UUID, UUID, UUID], set[tuple[Any, ...]]] = defaultdict(set)
    for key, result in after.results.items():
        for element in result.raw.get("predictions", ()):
            said[key].add((element["label"], element.get("start")))
    for row in after.annotations.values():
        if row.source != "model" or row.review != "suggested" or row.deleted_at is not None:
            continue
        if row.label_id not in after.labels:
            continue  # marked, and soon gone
        geometry = row.geometry or {}
        label = after.labels[row.label_id].name
        key = (row.item_id, row.version_id, row.post_processor_id)
        assert (label, geometry.get("start")) in said[key], (
            "a suggestion that no kept answer makes",
            label,
            row,
            said[key],
        )
