"""Changes an item as people do: its name, description, text, extension.

No job is planned by it. A model that runs on a text that is changed meanwhile sees at its finish
that its input is another one, and runs again; spans of the old text stay where they are and are
shown as stale. A changed item belongs to all its versions, as its file does.
"""

from dataclasses import dataclass
from uuid import UUID

from ppworker.errors import NotFound, Stale
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.uploads import item_files
from ppworker.pipeline.uploads.names import shown_name
from ppworker.store import edits, item_pages, items
from ppworker.store.db import Tx


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """New values of an item; None leaves one as it is."""

    name: str | None = None
    description: str | None = None
    text: str | None = None
    """Empty: it has none any more."""
    extension: str | None = None
    """Empty leaves it too: an item's extension is never taken away."""


def change(
    deps: Deps, version_id: UUID, item_id: UUID, wanted: Changed, *, expected: int | None = None
) -> None:
    """Change an item; its version grows by one, whether or not a value differs.

    So of many callers who read the same version exactly one is followed.

    Args:
        deps: the collaborators.
        version_id: a version that has the item.
        item_id: the item.
        wanted: its new values.
        expected: the version of the item that the caller read; None: whatever it is.

    Raises:
        NotFound: the version has no such item.
        Stale: somebody changed it since.
        Invalid: a value breaks a rule.
    """
    values = _checked(deps, wanted)

    def work(tx: Tx) -> None:
        items.lock_items(tx, [item_id])
        found = item_pages.find_item(tx, version_id, item_id)
        if found is None:
            raise NotFound(f"there is no item '{item_id}' here", field="item")
        if expected not in {None, found.version}:
            raise stale("item", expected, found.version)
        edits.update_item(tx, item_id, values)

    deps.db.transact(work)


def stale(what: str, expected: int | None, current: int) -> Stale:
    """The error of a write that expected another version."""
    return Stale(
        f"the {what} is at version {current} by now, not {expected}; read it again and repeat "
        "your change on that",
        current_version=current,
    )


def _checked(deps: Deps, wanted: Changed) -> dict[str, str]:
    values = {}
    if wanted.name is not None:
        values["name"] = shown_name(wanted.name)
    if wanted.description is not None:
        values["description"] = item_files.checked_description(wanted.description)
    if wanted.text is not None:
        values["text"] = item_files.checked_text(deps, wanted.text)
    if wanted.extension is not None and (
        extension := item_files.checked_extension(wanted.extension)
    ):
        values["extension"] = extension
    return values
