"""Takes an operation through the items of a version that have suggestions of a kind.

A chunk looks at items in the order of their ids, outside any transaction, and hands on those that
have something to be changed; only these are locked. Its cursor is the upper half of the last id it
looked at, which is its time and a part of a millisecond: items that share it are never parted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from ppworker.errors import NotFound
from ppworker.pipeline.control.kept_answers import cursor_of
from ppworker.pipeline.control.operations import Chunk
from ppworker.pipeline.deps import Deps
from ppworker.store import operations, suggestions
from ppworker.store.db import Tx
from ppworker.store.ids import new_id
from ppworker.store.operations import Operation
from ppworker.store.suggestions import Suggestions

_LOW_BITS = 64


def _nothing() -> None:
    """Nothing to tell after a COMMIT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """An operation to be."""

    kind: str
    dataset_id: UUID
    user_id: UUID
    version_id: UUID
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """The next items on the way."""

    items: frozenset[UUID]
    """Those that have something to be changed."""
    looked_at: int
    """How many items there were, those without anything among them."""
    cursor: int
    is_last: bool

    def chunk(self, counts: Mapping[str, int], *, after: Callable[[], None] = _nothing) -> Chunk:
        """The chunk that passed them; ``after`` is called once it is committed."""
        return Chunk(
            cursor=self.cursor,
            done=self.looked_at,
            counts={word: count for word, count in counts.items() if count},
            is_last=self.is_last,
            after=after,
        )


def begin(deps: Deps, begun: Begun) -> UUID:
    """Create an operation that passes every item of a version; returns its id."""
    id_ = new_id()

    def work(tx: Tx) -> None:
        operations.insert_operation(
            tx,
            id_,
            begun.user_id,
            kind=begun.kind,
            arguments=begun.arguments,
            dataset_id=begun.dataset_id,
            total=suggestions.count_walked(tx, begun.version_id),
        )

    deps.db.transact(work)
    return id_


def prepare(deps: Deps, operation: Operation, wanted: Suggestions) -> Passage:
    """Look at the next items behind the operation's cursor.

    Raises:
        NotFound: the version was deleted.
    """
    with deps.db.look() as tx:
        if not suggestions.is_live(tx, wanted.version_id):
            raise NotFound("the version was deleted", field="version")
        walked, is_last = _next(tx, wanted.version_id, operation.cursor, operation.chunk)
        found = suggestions.find_suggestions(tx, wanted, walked)
    return Passage(
        items=frozenset(found.values()),
        looked_at=len(walked),
        cursor=cursor_of(walked[-1]) if walked else operation.cursor,
        is_last=is_last,
    )


def _next(tx: Tx, version_id: UUID, cursor: int, limit: int) -> tuple[list[UUID], bool]:
    """Items behind the cursor, and whether they are the last."""
    after = UUID(int=(cursor << _LOW_BITS) | ((1 << _LOW_BITS) - 1))
    if not cursor:
        after = UUID(int=0)
    while True:
        found = suggestions.walk(tx, version_id, after=after, limit=limit + 1)
        if len(found) <= limit:
            return found, True
        border = cursor_of(found[limit])
        before = [item_id for item_id in found if cursor_of(item_id) < border]
        if before:
            return before, False
        limit *= 2
