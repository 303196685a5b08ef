"""Writes the state of an item in a version, as long as it is the one that the caller read."""

from uuid import UUID

from ppworker.domain.text import clean_text
from ppworker.errors import Invalid, NotFound, TooLarge
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.edits.items import stale
from ppworker.store import item_pages, item_states, items
from ppworker.store.db import Tx
from ppworker.store.item_states import ItemState


def write(
    deps: Deps,
    version_id: UUID,
    item_id: UUID,
    user_id: UUID,
    state: str,
    *,
    expected: int | None = None,
) -> ItemState:
    """Write an item's state; returns it as it is then.

    Args:
        deps: the collaborators.
        version_id: a version that has the item.
        item_id: the item.
        user_id: who writes.
        state: in the client's own words; may be empty.
        expected: the version of the state that the caller read, 0 where there was none; None:
            whatever it is.

    Raises:
        NotFound: the version has no such item.
        Stale: somebody wrote it since.
        Invalid: it cannot be stored.
    """
    if clean_text(state)[1]:
        raise Invalid("has characters that cannot be stored (NUL, or half of one)", field="state")
    size, most = len(state.encode()), deps.settings.max_text_bytes
    if size > most:
        raise TooLarge(
            f"has {size} bytes, more than {most}; say less, or raise PPWORKER_MAX_TEXT_BYTES",
            field="state",
        )

    def work(tx: Tx) -> ItemState:
        items.lock_items(tx, [item_id])
        if item_pages.find_item(tx, version_id, item_id) is None:
            raise NotFound(f"there is no item '{item_id}' here", field="item")
        there = item_states.find_state(tx, version_id, item_id)
        current = 0 if there is None else there.version
        if expected not in {None, current}:
            raise stale("state", expected, current)
        return item_states.write_state(tx, version_id, item_id, user_id, state)

    return deps.db.transact(work)
