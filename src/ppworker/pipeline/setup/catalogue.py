"""Creates what uploads go into: datasets, splits and labels, their names checked first."""

import unicodedata
from collections.abc import Sequence
from uuid import UUID

from ppworker.domain.labels import MAX_NAME
from ppworker.domain.text import clean_text
from ppworker.errors import Invalid
from ppworker.pipeline.deps import Deps
from ppworker.store import datasets, labels
from ppworker.store.datasets import Dataset, Split
from ppworker.store.db import Tx
from ppworker.store.labels import Label

MAX_SPLITS = 100
"""Most splits that a dataset is created with."""


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
    splits: Sequence[str] = datasets.DEFAULT_SPLITS,
) -> Dataset:
    """Create a dataset with a first version and its splits, of which there may be none.

    Raises:
        Invalid: a name breaks the rules.
        Conflict: the user has a dataset of that name.
    """
    name = checked_name(name)
    names = list(dict.fromkeys(checked_name(split, field="split") for split in splits))
    if len(names) > MAX_SPLITS:
        raise Invalid(f"a dataset begins with {MAX_SPLITS} splits at most", field="split")
    return deps.db.transact(
        lambda tx: datasets.create_dataset(
            tx,
            user_id,
            name,
            description=clean_text(description)[0],
            notes=clean_text(notes)[0],
            content_type=checked_name(content_type, field="content_type"),
            multi_label=multi_label,
            splits=names,
        )
    )


def create_split(deps: Deps, user_id: UUID, dataset: Dataset, name: str) -> Split:
    """Create a split in a dataset's newest version.

    Raises:
        Invalid: the name breaks the rules.
        Conflict: there is one of that name.
    """
    name = checked_name(name)

    def work(tx: Tx) -> Split:
        split_id = datasets.create_split(tx, dataset.version_id, user_id, name)
        return datasets.get_split(tx, user_id, str(split_id))

    return deps.db.transact(work)


def create_label(deps: Deps, user_id: UUID, dataset: Dataset, name: str) -> Label:
    """Create a label in a dataset's newest version.

    Raises:
        Invalid: the name is empty, too long or cannot be shown.
        Conflict: there is one of that name, case and width apart.
    """
    if not name.isprintable():
        raise Invalid("a label's name has no control characters; leave them out", field="name")
    return deps.db.transact(lambda tx: labels.create_label(tx, dataset.version_id, user_id, name))
