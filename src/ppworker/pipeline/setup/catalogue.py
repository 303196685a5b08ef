"""Creates and changes what uploads go into: datasets, versions, splits and labels.

Names are checked first. What is made beneath a dataset belongs to whoever owns it. A change names
the columns that it is about; the others stay as they are.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from ppworker.domain.labels import MAX_NAME, normalise_label
from ppworker.domain.text import clean_text
from ppworker.errors import Conflict, Invalid, NotFound, StoreRefused, Unauthenticated
from ppworker.pipeline.deps import Deps
from ppworker.store import datasets, labels, splits, versions
from ppworker.store.datasets import Dataset, Split
from ppworker.store.db import Tx
from ppworker.store.labels import Label
from ppworker.store.versions import Version

MAX_SPLITS = 100
"""Most splits that a dataset is created with."""
MAX_DESCRIPTION = 10_000
MAX_NOTES = 100_000
MAX_CONFIG = 1_000_000
"""Most characters of a version's own text."""
MAX_SHORTCUT = 50

_COLOR = re.compile(r"#(?:[0-9a-fA-F]{3}){1,2}")


def checked_name(name: str, *, field: str = "name") -> str:
    """The name in NFC and trimmed.

    Raises:
        Invalid: it is empty or too long, holds characters that cannot be shown, or could not be
            told from a path (``DATASET/SPLIT``) or an id.
    """
    clean = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(clean) <= MAX_NAME:
        raise Invalid(f"a name has 1 to {MAX_NAME} characters, this one {len(clean)}", field=field)
    if not clean.isprintable():
        raise Invalid("a name has no control characters; leave them out", field=field)
    if "/" in clean:
        raise Invalid("a name has no '/', which separates DATASET/SPLIT; use '-'", field=field)
    if datasets.as_id(clean):
        raise Invalid("a name must not look like an id; choose a word", field=field)
    return clean


def create_dataset(
    deps: Deps,
    user_id: UUID,
    name: str,
    *,
    description: str = "",
    notes: str = "",
    content_type: str = "documents",
    multi_label: bool = True,
    default_splits: bool = True,
    splits: Sequence[str] | None = None,
) -> Dataset:
    """Create a dataset with a first version and its splits.

    Args:
        deps: the collaborators.
        user_id: whose it is.
        name: what its owner calls it, once among their datasets.
        description: what it is.
        notes: more about it.
        content_type: images, text, tabular, ner, documents, or another word.
        multi_label: whether an item may carry several class labels.
        default_splits: whether its versions begin with the splits train, valid and test.
        splits: other splits of the first version, of which there may be none.

    Raises:
        Invalid: a name or text breaks the rules.
        Conflict: the user has a dataset of that name.
        Unauthenticated: the account ended in this moment.
    """
    name = checked_name(name)
    if splits is None:
        splits = datasets.DEFAULT_SPLITS if default_splits else ()
    names = list(dict.fromkeys(checked_name(split, field="split") for split in splits))
    if len(names) > MAX_SPLITS:
        raise Invalid(f"a dataset begins with {MAX_SPLITS} splits at most", field="split")
    texts = _checked({"description": description, "notes": notes, "content_type": content_type})

    def work(tx: Tx) -> Dataset:
        made = datasets.create_dataset(
            tx,
            user_id,
            name,
            multi_label=multi_label,
            default_splits=default_splits,
            splits=names,
            **texts,
        )
        # After it: its row holds that of the user, and whoever ends the account waits or was first.
        if datasets.is_user_gone(tx, user_id):
            raise Unauthenticated("the account was ended", field="Authorization")
        return made

    return deps.db.transact(work)


def change_dataset(deps: Deps, dataset: Dataset, changes: Mapping[str, Any]) -> None:
    """Change a dataset.

    Args:
        deps: the collaborators.
        dataset: which one.
        changes: any of name, description, notes, content_type, multi_label and default_splits.

    Raises:
        Invalid: something breaks the rules.
        Conflict: its owner has another one of that name; or items shall carry one class label only,
            but some are annotated.
    """
    values = _checked(changes)

    def work(tx: Tx) -> None:
        narrows = dataset.multi_label and values.get("multi_label") is False
        if narrows:
            # Whoever annotates reads the rule with a label held: what is there now is all there is.
            labels.hold_all_labels(tx, dataset.id)
        if narrows and datasets.is_annotated(tx, dataset.id):
            raise Conflict(
                "items are annotated already, of which some may carry several labels; "
                "leave multi_label as it is, or begin a new dataset",
                field="multi_label",
            )
        datasets.update_dataset(tx, dataset.id, values)

    _write(deps, work, values, datasets.dataset_exists)


def create_version(
    deps: Deps, dataset: Dataset, *, name: str = "", description: str = "", config: str = ""
) -> Version:
    """Create a version of a dataset, with the splits that its versions begin with.

    Args:
        deps: the collaborators.
        dataset: where.
        name: by default v and a number.
        description: what it is.
        config: text of the client's own, kept as it is.

    Raises:
        Invalid: a text breaks the rules.
    """
    texts = _checked({"description": description, "config": config})
    checked = checked_name(name) if name else ""

    def work(tx: Tx) -> Version:
        called = checked or f"v{versions.count_versions(tx, dataset.id) + 1}"
        id_ = versions.create_version(tx, dataset.id, dataset.user_id, called, **texts)
        for split in datasets.DEFAULT_SPLITS if dataset.default_splits else ():
            datasets.create_split(tx, id_, dataset.user_id, split)
        made = versions.find_version(tx, dataset.user_id, dataset.id, id_)
        if made is None:
            raise NotFound(f"dataset '{dataset.name}' was deleted", field="dataset")
        return made

    return deps.db.transact(work)


def change_version(deps: Deps, version: Version, changes: Mapping[str, Any]) -> None:
    """Change a version.

    Args:
        deps: the collaborators.
        version: which one.
        changes: any of name, description, config and default_split (an id, or empty for none).

    Raises:
        Invalid: a text breaks the rules, or the version has no such split.
    """
    values = _checked({name: value for name, value in changes.items() if name != "default_split"})

    def work(tx: Tx) -> None:
        if "default_split" in changes:
            values["default_split"] = _own_split(tx, version, str(changes["default_split"]))
        versions.update_version(tx, version.id, values)

    deps.db.transact(work)


def _own_split(tx: Tx, version: Version, given: str) -> UUID | None:
    if not given:
        return None
    id_ = datasets.as_id(given)
    if id_ is None or datasets.find_split(tx, version.id, id_) is None:
        raise Invalid(f"the version has no split '{given}'", field="default_split")
    return id_


def create_split(
    deps: Deps, version_id: UUID, user_id: UUID, name: str, *, description: str = ""
) -> Split:
    """Create a split in a version.

    Raises:
        Invalid: the name or the description breaks the rules.
        Conflict: there is one of that name.
    """
    name = checked_name(name)
    texts = _checked({"description": description})

    def work(tx: Tx) -> Split:
        split_id = datasets.create_split(tx, version_id, user_id, name, **texts)
        found = datasets.find_split(tx, version_id, split_id)
        if found is None:
            raise NotFound(f"version {version_id} was deleted", field="version")
        return found

    return deps.db.transact(work)


def change_split(deps: Deps, split: Split, changes: Mapping[str, Any]) -> None:
    """Change a split's name or description. Post-processors that name it are left as they are.

    Raises:
        Invalid: one of them breaks the rules.
        Conflict: its version has another one of that name.
    """
    values = _checked(changes)
    _write(deps, lambda tx: splits.update_split(tx, split, values), values, datasets.split_exists)


def create_label(
    deps: Deps,
    version_id: UUID,
    user_id: UUID,
    name: str,
    details: Mapping[str, Any] | None = None,
) -> Label:
    """Create a label in a version; its index is the next one that is free.

    Args:
        deps: the collaborators.
        version_id: where.
        user_id: whose it is.
        name: what it is called, once in its version, case and width apart.
        details: any of description, color and shortcut.

    Raises:
        Invalid: the name is empty, too long or cannot be shown, or a detail breaks the rules.
        Conflict: there is one of that name, case and width apart.
    """
    values = _checked(details or {})
    if not values.get("color"):
        values.pop("color", None)  # ours, then
    checked = _checked_label(name)
    return deps.db.transact(
        lambda tx: labels.create_label(tx, version_id, user_id, checked, values)
    )


def change_label(deps: Deps, label: Label, changes: Mapping[str, Any]) -> None:
    """Change a label's name, description, color or shortcut. Its index is ours.

    Raises:
        Invalid: one of them breaks the rules.
        Conflict: its version has another one of that name, case and width apart.
    """
    given = dict(changes)
    values = {"name": _checked_label(given.pop("name"))} if "name" in given else {}
    values |= _checked(given)
    if not values.get("color"):
        values.pop("color", None)

    def work(tx: Tx) -> None:
        labels.update_label(tx, label.version_id, label.id, values)

    _write(deps, work, values, labels.label_exists)


def _checked_label(name: str) -> str:
    clean = unicodedata.normalize("NFC", name).strip()
    if not (1 <= len(clean) <= MAX_NAME and normalise_label(clean)):
        raise Invalid(f"a label's name has 1 to {MAX_NAME} characters", field="name")
    if not clean.isprintable():
        raise Invalid("a label's name has no control characters; leave them out", field="name")
    return clean


def _write(
    deps: Deps,
    work: Callable[[Tx], None],
    values: Mapping[str, Any],
    exists: Callable[[str], Conflict],
) -> None:
    try:
        deps.db.transact(work)
    except StoreRefused:
        if "name" not in values:
            raise
        # All else was checked: somebody took the name at the same moment.
        raise exists(values["name"]) from None


def checked_text(field: str, given: str) -> str:
    """A text of one of the fields, cleaned.

    Raises:
        Invalid: it is too long.
    """
    return str(_CHECKS[field](given))


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of columns as they may be written.

    Raises:
        Invalid: one breaks its rule; it is named.
    """
    return {name: _CHECKS[name](value) for name, value in given.items()}


def _text(field: str, most: int) -> Callable[[str], str]:
    def check(given: str) -> str:
        clean, _ = clean_text(given)
        if len(clean) > most:
            raise Invalid(f"has at most {most} characters, this one {len(clean)}", field=field)
        return clean

    return check


def _config(given: str) -> str:
    """Kept as it is, to the byte, so what cannot be kept is refused."""
    if clean_text(given)[1]:
        raise Invalid("holds NUL or half a character; leave them out", field="config")
    return _text("config", MAX_CONFIG)(given)


def _color(given: str) -> str:
    if given and not _COLOR.fullmatch(given):
        raise Invalid(f"'{given[:20]}' is no color; write one like #1f77b4", field="color")
    return given


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "name": checked_name,
    "description": _text("description", MAX_DESCRIPTION),
    "notes": _text("notes", MAX_NOTES),
    "content_type": lambda given: checked_name(given, field="content_type"),
    "multi_label": bool,
    "default_splits": bool,
    "config": _config,
    "color": _color,
    "shortcut": _text("shortcut", MAX_SHORTCUT),
}
