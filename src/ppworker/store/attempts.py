"""Counts attempts of a subject within a window: exact however many processes count at once."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from ppworker.store.db import Tx

_PRUNED = 100
"""Most old windows that a login clears away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """An attempt that was counted."""

    subject: str
    window_ends_at: datetime


# The row is locked from here to COMMIT: of attempts at once, each sees the count of the one before.
_TAKE = sa.text("""
INSERT INTO login_attempts AS a (subject, failures, window_ends_at)
VALUES (:subject, 1, now() + make_interval(secs => :window_s))
ON CONFLICT (subject) DO UPDATE SET
  failures = CASE WHEN a.window_ends_at <= now() THEN 1 ELSE a.failures + 1 END,
  window_ends_at = CASE WHEN a.window_ends_at <= now() THEN excluded.window_ends_at
    ELSE a.window_ends_at END
WHERE a.window_ends_at <= now() OR a.failures < :most
RETURNING window_ends_at
""")


def take(tx: Tx, subject: str, *, most: int, window_s: float) -> Taken | None:
    """Count an attempt before it is made; None when the window has had as many as it may.

    Whoever takes several in one transaction takes them in the same order as everybody else.
    """
    values = {"subject": subject, "most": most, "window_s": window_s}
    ends = tx.execute(_TAKE, values).scalar_one_or_none()
    return None if ends is None else Taken(subject=subject, window_ends_at=ends)


def seconds_left(tx: Tx, subject: str) -> int:
    """Seconds until the window of a subject ends, at least one."""
    left = tx.execute(
        sa.text(
            "SELECT ceil(extract(epoch FROM window_ends_at - clock_timestamp())) "
            "FROM login_attempts WHERE subject = :subject"
        ),
        {"subject": subject},
    ).scalar_one_or_none()
    return max(1, int(left or 0))


def give_back(tx: Tx, taken: Taken) -> None:
    """Count an attempt no more: it was none of those that the limit is for."""
    tx.execute(
        sa.text(
            "UPDATE login_attempts SET failures = failures - 1 WHERE subject = :subject "
            "AND window_ends_at = :ends AND failures > 0"
        ),
        {"subject": taken.subject, "ends": taken.window_ends_at},
    )


def forget(tx: Tx, subject: str) -> None:
    """Begin anew with a subject."""
    tx.execute(sa.text("DELETE FROM login_attempts WHERE subject = :subject"), {"subject": subject})


def prune(tx: Tx, *, most: int = _PRUNED) -> int:
    """Clear away windows that are over, some at a time, none that somebody counts in; returns how
    many."""
    return tx.execute(
        sa.text(
            "DELETE FROM login_attempts WHERE subject IN (SELECT subject FROM login_attempts "
            "WHERE window_ends_at <= now() ORDER BY window_ends_at LIMIT :most "
            "FOR UPDATE SKIP LOCKED)"
        ),
        {"most": most},
    ).rowcount
