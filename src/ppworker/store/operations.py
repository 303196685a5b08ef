"""Operations: long work that is not a model run, leased and fenced like jobs.

The row of an operation is the first lock of every transaction that works on it; every write is
fenced by its id and lease token; only the database's clock decides.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from ppworker.domain.job import Status, Transition
from ppworker.errors import Invalid
from ppworker.store.db import Tx, by_name

FIRST_CHUNK = 128
"""Units of work of a chunk when nothing is known of its speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A row, as read under whatever lock the reader took."""

    id: UUID
    user_id: UUID
    dataset_id: UUID | None
    kind: str
    arguments: Mapping[str, Any]
    status: str
    """One of `ppworker.domain.job.Status`."""
    cursor: int
    """Where the next chunk begins, in the terms of its kind."""
    total: int | None
    """Units of work, None while unknown."""
    done: int
    counts: Mapping[str, int]
    """What was done, by word."""
    result: Mapping[str, Any]
    """What it made, and what it left out."""
    attempts: int
    """Claims since the last progress, the present one among them."""
    max_attempts: int
    lease_token: int
    reason: str
    error: str
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    chunk: int = FIRST_CHUNK
    """Most units that the next chunk should do; set by whoever runs it, from measured time."""

    @property
    def is_over(self) -> bool:
        """Whether it is completed or failed."""
        return self.status in {Status.COMPLETED, Status.FAILED}


_COLUMNS = (
    "id", "user_id", "dataset_id", "kind", "arguments", "status", "cursor", "total", "done",
    "counts", "result", "attempts", "max_attempts", "lease_token", "reason", "error", "created_at",
    "started_at", "completed_at",
)  # fmt: skip
_SELECTED = ", ".join(f'o."{name}"' for name in _COLUMNS)
_READ = f"SELECT {_SELECTED} FROM operations o "  # noqa: S608  the constant above


class _Arguments(dict[str, Any]):
    """Arguments of an operation, which another version of the program may have written."""

    def __missing__(self, name: str) -> Any:
        raise Invalid("is missing; another version of ppworker may have begun it", field=name)


def _operation(row: sa.Row[Any]) -> Operation:
    values = by_name(row)
    arguments = values.pop("arguments")
    return Operation(arguments=_Arguments(arguments), **values)


def insert_operation(
    tx: Tx,
    id_: UUID,
    user_id: UUID,
    *,
    kind: str,
    arguments: Mapping[str, Any],
    dataset_id: UUID | None,
    total: int | None = None,
    result: Mapping[str, Any] | None = None,
) -> None:
    """Create an operation that is due at once; of its result something may be known before."""
    tx.execute(
        sa.text(
            "INSERT INTO operations (id, user_id, dataset_id, kind, arguments, total, result) "
            "VALUES (:id, :user, :dataset, :kind, CAST(:arguments AS jsonb), :total, "
            "CAST(:result AS jsonb))"
        ),
        {
            "id": id_,
            "user": user_id,
            "dataset": dataset_id,
            "kind": kind,
            "arguments": json.dumps(dict(arguments)),
            "total": total,
            "result": json.dumps(dict(result or {})),
        },
    )


_FIND = sa.text(
    _READ  # noqa: S608  the constant above
    + "WHERE o.id = :id AND (o.user_id = :user OR EXISTS (SELECT 1 FROM shares s "
    "WHERE s.dataset_id = o.dataset_id AND s.user_id = :user) OR EXISTS (SELECT 1 "
    "FROM datasets d WHERE d.id = o.dataset_id AND d.user_id = :user))"
)


def find_operation(tx: Tx, user_id: UUID, id_: UUID) -> Operation | None:
    """The user's operation, or one on a dataset that is theirs or shared with them."""
    row = tx.execute(_FIND, {"id": id_, "user": user_id}).one_or_none()
    return None if row is None else _operation(row)


def list_operations(
    tx: Tx, user_id: UUID, *, limit: int, status: str | None = None, after: UUID | None = None
) -> list[Operation]:
    """The user's operations, newest first, behind ``after``."""
    where = ["o.user_id = :user"]
    where += ["o.status = :status"] if status else []
    where += ["o.id < :after"] if after else []
    statement = sa.text(_READ + f"WHERE {' AND '.join(where)} ORDER BY o.id DESC LIMIT :limit")
    values = {"user": user_id, "limit": limit, "status": status, "after": after}
    rows = tx.execute(statement, {k: v for k, v in values.items() if v is not None})
    return [_operation(row) for row in rows]


# An expired lease is claimable like a pending row: no sweep has to find it first.
_IS_DUE = """o.kind = ANY(:kinds) AND (
  (o.status = 'pending' AND o.run_at <= clock_timestamp())
  OR (o.status = 'processing' AND o.lease_expires_at < clock_timestamp()))"""

_ANY_DUE = sa.text(
    f"SELECT EXISTS (SELECT 1 FROM operations o WHERE o.status IN ('pending','processing') "  # noqa: S608
    f"AND {_IS_DUE})"
)


def is_any_due(tx: Tx, kinds: Collection[str]) -> bool:
    """Whether an operation of these kinds could be claimed now; takes no lock."""
    return bool(tx.execute(_ANY_DUE, {"kinds": sorted(kinds)}).scalar_one())


_FAIL_EXHAUSTED = sa.text(
    f"""
UPDATE operations f SET status = 'failed', reason = 'lease_expired',
  error = 'whoever worked on it died or lost the database ' || f.attempts
    || ' times in a row without progress',
  lease_owner = NULL, lease_expires_at = NULL, completed_at = clock_timestamp()
WHERE f.id IN (SELECT o.id FROM operations o WHERE o.status = 'processing' AND {_IS_DUE}
  AND o.attempts >= o.max_attempts ORDER BY o.id FOR UPDATE SKIP LOCKED)
RETURNING {_SELECTED.replace("o.", "f.")}"""  # noqa: S608  its parts are the constants above
)


def fail_exhausted(tx: Tx, kinds: Collection[str]) -> list[Operation]:
    """End operations whose lease ran out at their last attempt."""
    return [_operation(row) for row in tx.execute(_FAIL_EXHAUSTED, {"kinds": sorted(kinds)})]


_CLAIM = """
WITH picked AS MATERIALIZED (
  SELECT o.id FROM operations o
  WHERE o.status IN ('pending','processing') AND {due} AND o.attempts < o.max_attempts {only}
  ORDER BY o.run_at, o.id LIMIT 1 FOR UPDATE SKIP LOCKED)
UPDATE operations o SET status = 'processing', attempts = o.attempts + 1,
  lease_token = o.lease_token + 1, lease_owner = :worker,
  lease_expires_at = clock_timestamp() + make_interval(secs => :lease_s),
  started_at = coalesce(o.started_at, clock_timestamp()), reason = '', error = ''
FROM picked WHERE o.id = picked.id RETURNING {columns}
"""
_CLAIM_ANY = sa.text(_CLAIM.format(due=_IS_DUE, only="", columns=_SELECTED))
_CLAIM_ONE = sa.text(_CLAIM.format(due=_IS_DUE, only="AND o.id = :id", columns=_SELECTED))


def claim(
    tx: Tx,
    kinds: Collection[str],
    *,
    worker_id: UUID,
    lease_s: float,
    operation_id: UUID | None = None,
) -> Operation | None:
    """Lease the operation that has been due for longest, or the one named if it is due.

    Its attempts and its token grow by one.
    """
    values = {"kinds": sorted(kinds), "worker": worker_id, "lease_s": lease_s}
    if operation_id is None:
        row = tx.execute(_CLAIM_ANY, values).one_or_none()
    else:
        row = tx.execute(_CLAIM_ONE, {**values, "id": operation_id}).one_or_none()
    return None if row is None else _operation(row)


_LOCK = sa.text(_READ + "WHERE o.id = :id FOR UPDATE")


def lock_operation(tx: Tx, id_: UUID) -> Operation | None:
    """Lock an operation whoever holds its lease: waits for a COMMIT that is in flight."""
    row = tx.execute(_LOCK, {"id": id_}).one_or_none()
    return None if row is None else _operation(row)


_HOLD = sa.text(
    _READ + "WHERE o.id = :id AND o.lease_token = :token AND o.status = 'processing' FOR UPDATE"
)


def hold(tx: Tx, id_: UUID, token: int) -> Operation | None:
    """Lock an operation that is still ours by its token; None when its lease is lost.

    The first lock of a chunk, and a statement of its own.
    """
    row = tx.execute(_HOLD, {"id": id_, "token": token}).one_or_none()
    return None if row is None else _operation(row)


_RENEW = sa.text("""
UPDATE operations o SET lease_expires_at = clock_timestamp() + make_interval(secs => :lease_s)
FROM (SELECT id FROM operations WHERE id = :id AND lease_token = :token AND status = 'processing'
  FOR UPDATE SKIP LOCKED) AS held
WHERE o.id = held.id""")


def renew(tx: Tx, id_: UUID, token: int, *, lease_s: float) -> None:
    """Renew the lease of an operation that is still ours; one that is locked is left as it is."""
    tx.execute(_RENEW, {"id": id_, "token": token, "lease_s": lease_s})


_ADVANCE = sa.text(
    f"""
UPDATE operations o SET "cursor" = :cursor, done = :done, counts = CAST(:counts AS jsonb),
  result = CAST(:result AS jsonb), attempts = CASE WHEN :rest_s > 0 THEN 0 ELSE 1 END,
  status = CASE WHEN :is_last THEN 'completed' WHEN :rest_s > 0 THEN 'pending'
    ELSE 'processing' END,
  lease_owner = CASE WHEN :is_last OR :rest_s > 0 THEN NULL ELSE o.lease_owner END,
  lease_expires_at = CASE WHEN :is_last OR :rest_s > 0 THEN NULL
    ELSE clock_timestamp() + make_interval(secs => :lease_s) END,
  run_at = CASE WHEN :rest_s > 0 THEN clock_timestamp() + make_interval(secs => :rest_s)
    ELSE o.run_at END,
  completed_at = CASE WHEN :is_last THEN clock_timestamp() END
WHERE o.id = :id AND o.lease_token = :token AND o.status = 'processing'
RETURNING {_SELECTED}"""  # noqa: S608  its parts are the constants above
)


def advance(
    tx: Tx,
    held: Operation,
    *,
    cursor: int,
    done: int,
    counts: Mapping[str, int],
    result: Mapping[str, Any],
    is_last: bool,
    lease_s: float,
    rest_s: float = 0.0,
) -> Operation:
    """Record a chunk with the writes of it: place, counts and a renewed lease, or the end; with
    ``rest_s`` it waits, pending, for so many seconds.

    Progress makes the attempts begin anew. ``done``, ``counts`` and ``result`` are the new
    totals.
    """
    row = tx.execute(
        _ADVANCE,
        {
            "id": held.id,
            "token": held.lease_token,
            "cursor": cursor,
            "done": done,
            "counts": json.dumps(dict(counts)),
            "result": json.dumps(dict(result)),
            "is_last": is_last,
            "lease_s": lease_s,
            "rest_s": rest_s,
        },
    ).one()
    return _operation(row)


_MOVE = sa.text(
    f"""
UPDATE operations o SET status = :status, attempts = :attempts, reason = :reason, error = :error,
  lease_owner = NULL, lease_expires_at = NULL,
  run_at = CASE WHEN :status = 'pending'
    THEN clock_timestamp() + make_interval(secs => :delay_s) ELSE o.run_at END,
  completed_at = CASE WHEN :status = 'failed' THEN clock_timestamp() END
WHERE o.id = :id AND o.lease_token = :token AND o.status = 'processing'
RETURNING {_SELECTED}"""  # noqa: S608  its parts are the constants above
)


def move(tx: Tx, held: Operation, transition: Transition) -> Operation | None:
    """Take an operation that is still ours back to pending, or to failed; None when it is not."""
    row = tx.execute(
        _MOVE,
        {
            "id": held.id,
            "token": held.lease_token,
            "status": str(transition.to),
            "attempts": transition.attempts,
            "reason": "" if transition.cause == "released" else transition.reason,
            "error": transition.error,
            "delay_s": transition.delay_s,
        },
    ).one_or_none()
    return None if row is None else _operation(row)


_RETRY = sa.text(
    f"""
UPDATE operations o SET status = 'pending', attempts = 0, reason = '', error = '',
  run_at = clock_timestamp(), completed_at = NULL
WHERE o.id = :id AND o.user_id = :user AND o.status = 'failed' RETURNING {_SELECTED}"""  # noqa: S608
)


def retry_failed(tx: Tx, user_id: UUID, id_: UUID) -> Operation | None:
    """Let a failed operation go on where it stopped, with a fresh budget; None when none is."""
    row = tx.execute(_RETRY, {"id": id_, "user": user_id}).one_or_none()
    return None if row is None else _operation(row)
