"""Decides which label of the dataset a model's label means."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from uuid import UUID

from ppworker.domain.drop import Reason
from ppworker.domain.post_processor import PostProcessor

MAX_NAME = 200
"""Longest name of a label, in code points, its prefix included."""


@lru_cache(maxsize=4096)
def normalise_label(name: str) -> str:
    """Form in which names of labels are compared; labels of a version are unique by it.

    Unicode NFKC, case-folded, trimmed, with runs of white space as one space. Applying it twice
    changes nothing.
    """
    folded = unicodedata.normalize("NFKC", name)
    # Case folding can break the normal form, and the normal form can bring case back; twice is
    # enough for every code point (tested over all of them).
    for _ in range(2):
        folded = unicodedata.normalize("NFKC", folded.casefold())
    return " ".join(folded.split())


@dataclass(slots=True)
class Resolved:
    """The dataset's label for a prediction.

    Attributes:
        name: as it stands in the dataset, or as it should be created.
        is_new: whether it must be created.
    """

    name: str
    is_new: bool = False


class Resolver:
    """Finds labels by a post-processor's mapping and prefix among the labels of one version."""

    def __init__(self, processor: PostProcessor, labels: Mapping[str, UUID]) -> None:
        self._processor = processor
        self._labels = labels
        # Sorted, so that of several equal forms the same one is taken each time.
        self._by_form = {normalise_label(name): name for name in sorted(labels, reverse=True)}
        self._by_id = {label_id: name for name, label_id in labels.items()}
        self._mapping_by_form = {
            normalise_label(name): processor.label_mapping[name]
            for name in sorted(processor.label_mapping, reverse=True)
        }

    def resolve(self, label: str) -> Resolved | Reason:
        """Label for a prediction's own label, or why there is none.

        The mapping is tried exactly, then in normal form; what it does not name passes through.
        The result is looked up the same way, first bare, then with the prefix of new labels.
        """
        name = self._mapped(label)
        if isinstance(name, Reason):
            return name
        bare = " ".join(name.split())
        if not bare:
            return Reason.BAD_LABEL
        prefixed = " ".join(f"{self._processor.label_prefix}{bare}".split())
        for candidate in (name, bare, prefixed):
            if found := self._find(candidate):
                return Resolved(found)
        if not self._processor.auto_create_labels:
            return Reason.UNKNOWN_LABEL
        if len(prefixed) > MAX_NAME:
            return Reason.BAD_LABEL
        return Resolved(prefixed, is_new=True)

    def _find(self, name: str) -> str | None:
        return name if name in self._labels else self._by_form.get(normalise_label(name))

    def _mapped(self, label: str) -> str | Reason:
        mapping = self._processor.label_mapping
        form = normalise_label(label)
        if label in mapping:
            name = mapping[label]
        elif form in self._mapping_by_form:
            name = self._mapping_by_form[form]
        else:
            return label
        if name is None:
            return Reason.MAPPED_TO_NOTHING
        label_id = _as_uuid(name)
        if label_id is None or name in self._labels:
            return name
        # An id whose label is gone must not come back as a label named like an id.
        return self._by_id.get(label_id, Reason.UNKNOWN_LABEL)


def _as_uuid(name: str) -> UUID | None:
    try:
        return UUID(name)
    except ValueError:
        return None
