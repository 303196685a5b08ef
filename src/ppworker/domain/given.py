"""Decides what an inference made elsewhere becomes: which item it is about, which annotations.

Nothing here deletes or changes an annotation that stands: an inference only adds what is missing,
and each of its predictions is added, stands already, or is counted as dropped with its reason.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from uuid import UUID

from ppworker.domain import geometry as geo
from ppworker.domain.apply import Draft, fingerprint
from ppworker.domain.coordinates import About, locate, may_be_span
from ppworker.domain.drop import Reason
from ppworker.domain.inference import Prediction
from ppworker.domain.labels import MAX_NAME, normalise_label
from ppworker.domain.replace import Existing
from ppworker.domain.text import clean_text

_TO_JSON = json.JSONEncoder(separators=(",", ":"), sort_keys=True)


@dataclass(slots=True)
class Said:
    """A prediction as it was given: label, confidence, place."""

    label: str
    score: float | None
    coordinates: str


@dataclass(slots=True, kw_only=True)
class Given:
    """One inference, read."""

    external_id: str
    """Its id where it was made, else a hash of what it says; twice the same is one inference."""
    item: str
    """The item it says it is about (``dataset_item_id``), empty for a new one."""
    is_file: bool
    """Whether it was made from a file, else from text."""
    name: str
    """File name; empty for text."""
    text: str | None
    """Text of the item to be, as it was given: what PostgreSQL refuses is still in it."""
    extension: str
    blob: str
    """SHA-256 of the stored file, empty where none is named."""
    predictions: tuple[Said, ...]
    model_version: str


def read(raw: Mapping[str, Any]) -> Given:
    """Read an inference whose shape has been checked."""
    name, result = raw.get("name") or "", raw.get("result") or ""
    extension = _word(raw, "extension").lstrip(".").lower()
    blob = _word(raw, "blob").lower()
    is_file = bool(blob) or _names_file(name, extension)
    predictions = _predictions(raw)
    return Given(
        external_id=_word(raw, "id") or _content_id(raw, predictions),
        item=_word(raw, "dataset_item_id"),
        is_file=is_file,
        name=name if is_file else "",
        text=(result if is_file else name or result) or None,
        extension=extension,
        blob=blob,
        predictions=predictions,
        model_version=_word(raw, "model_version_id"),
    )


def _word(raw: Mapping[str, Any], key: str) -> str:
    return clean_text(raw.get(key) or "")[0].strip()


def _names_file(name: str, extension: str) -> bool:
    """Text inferences carry the text as their name and no extension, or that of plain text."""
    if extension == "txt":
        return name.lower().endswith(".txt")
    return extension != ""


def _predictions(raw: Mapping[str, Any]) -> tuple[Said, ...]:
    given: Sequence[Mapping[str, Any]] = raw.get("inference_items") or ()
    if given:
        return tuple([_said(each, _word(each, "coordinates")) for each in given])
    # The deprecated pair of fields; it never had a place.
    return (_said(raw, ""),) if raw.get("prediction") else ()


def _said(raw: Mapping[str, Any], coordinates: str) -> Said:
    score = raw.get("confidence")
    label = " ".join(_word(raw, "prediction").split())
    return Said(label, None if score is None else float(score), coordinates)


def _content_id(raw: Mapping[str, Any], predictions: Sequence[Said]) -> str:
    keys = ("name", "result", "extension", "blob", "dataset_item_id", "model_id",
            "model_version_id")  # fmt: skip
    what = [[raw.get(key) or "" for key in keys]]
    what += [[said.label, said.score, said.coordinates] for said in predictions]
    return "sha256:" + hashlib.sha256(_TO_JSON.encode(what).encode()).hexdigest()


def may_hold_spans(given: Given) -> bool:
    """Whether a prediction of it has the form of a span, for which the text must be read."""
    return any(may_be_span(said.coordinates) for said in given.predictions)


def labels_of(predictions: Sequence[Said], *, multi_label: bool) -> list[str]:
    """Names of the labels that the predictions need, each once; unusable names are left out."""
    wanted = predictions
    plain = [said for said in predictions if not said.coordinates]
    if not multi_label and len(plain) > 1:
        top = min(plain, key=lambda said: _rank(said.score))
        wanted = [said for said in predictions if said.coordinates or said is top]
    return list(dict.fromkeys(said.label for said in wanted if _is_name(said.label)))


def drafts(
    predictions: Sequence[Said], about: About, *, multi_label: bool
) -> tuple[list[Draft], Counter[Reason]]:
    """Annotations that the predictions ask for on an item, and how many ask for none.

    Args:
        predictions: in their order.
        about: the item.
        multi_label: False where an item takes one class: the best one is chosen before its label
            is looked at, so that an unusable best one never promotes the second best.
    """
    dropped: Counter[Reason] = Counter()
    made = [_draft(said, about) for said in predictions]
    top = None if multi_label or len(made) == 1 else _top_class(predictions, made)
    kept: list[Draft] = []
    for position, draft in enumerate(made):
        if isinstance(draft, Reason):
            dropped[draft] += 1
        elif top is not None and draft.kind == "class" and position != top:
            dropped[Reason.NOT_TOP] += 1
        else:
            kept.append(draft)
    return _without_duplicates(kept, dropped), dropped


def _top_class(predictions: Sequence[Said], made: Sequence[Draft | Reason]) -> int | None:
    """Position of the best prediction that concerns the whole item."""
    classes = [
        position
        for position, draft in enumerate(made)
        if (
            not predictions[position].coordinates
            if isinstance(draft, Reason)
            else draft.kind == "class"
        )
    ]
    return min(classes, key=lambda position: _rank(predictions[position].score), default=None)


def _rank(score: float | None) -> float:
    """Sorts the best first, the unscored last; sorting keeps the order of equals."""
    return 1.0 if score is None else -score


def _is_name(label: str) -> bool:
    return 0 < len(label) <= MAX_NAME


def _draft(said: Said, about: About) -> Draft | Reason:
    if not _is_name(said.label):
        return Reason.BAD_LABEL
    if not said.coordinates:
        return Draft(
            label=said.label, kind="class", geometry=None, coordinates="", text=None,
            score=said.score, page=None, fingerprint=_of_class(said.label),
        )  # fmt: skip
    place = locate(said.coordinates, about)
    if isinstance(place, Reason):
        return place
    original = Prediction(kind=place.kind, label=said.label, geometry=place.said)
    # A place that could not be computed is told apart by its words.
    quoted = place.coordinates if place.said is None else place.text
    return Draft(
        label=said.label, kind=place.kind, geometry=place.geometry, coordinates=place.coordinates,
        text=place.text, score=said.score, page=None, fingerprint=fingerprint(original, quoted),
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _of_class(label: str) -> str:
    return fingerprint(Prediction(kind="class", label=label), None)


def _without_duplicates(made: list[Draft], dropped: Counter[Reason]) -> list[Draft]:
    if len(made) <= 1:
        return made
    best: dict[tuple[str, str, str], Draft] = {}
    for draft in made:
        key = (normalise_label(draft.label), *_where(draft))
        rival = best.get(key)
        if rival is not None:
            dropped[Reason.DUPLICATE] += 1
        if rival is None or _rank(draft.score) < _rank(rival.score):
            best[key] = draft
    return list(best.values())


def _where(row: Draft | Existing) -> tuple[str, str]:
    """Kind and place, equal for equal places whatever wrote them."""
    if row.geometry is None:
        return row.kind, row.coordinates.strip()
    return row.kind, _TO_JSON.encode(_rounded(row.geometry))


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    found = geo.number(value)
    return None if found is None else round(found, 2) + 0.0


@dataclass(slots=True, kw_only=True)
class Added:
    """What becomes of the drafts of one inference on one item."""

    insert: list[tuple[Draft, UUID]] = field(default_factory=list)
    already_there: int = 0
    dropped: Counter[Reason] = field(default_factory=Counter)


class Standing:
    """What stands on an item; grows as drafts are added, so that each row is looked at once.

    Args:
        existing: every annotation of the item in the version, tombstones included.
    """

    def __init__(self, existing: Sequence[Existing]) -> None:
        self.is_empty = not existing
        self._live, self._gone = _Seen(), _Seen()
        for row in existing:
            (self._gone if row.deleted else self._live).note(row.label_id, row)
        self._unread: list[tuple[Draft, UUID]] = []

    def add(self, added: Sequence[tuple[Draft, UUID]]) -> None:
        """Note drafts that stand from now on; they are looked at only if somebody asks again."""
        self.is_empty = self.is_empty and not added
        self._unread += added

    def read(self) -> "tuple[_Seen, _Seen]":
        """What stands, and what a person deleted."""
        for draft, label_id in self._unread:
            self._live.note(label_id, draft)
        self._unread.clear()
        return self._live, self._gone


def missing(
    standing: Standing, wanted: Sequence[tuple[Draft, UUID]], *, multi_label: bool
) -> Added:
    """The drafts that nobody's annotation says already; none of those is changed or deleted.

    Args:
        standing: what stands on the item; what is missing stands from then on.
        wanted: drafts with the ids of their labels, without duplicates.
        multi_label: False where at most one ``class`` annotation stands per item: whoever's
            stands wins over an inference, since an inference deletes nothing.
    """
    added = Added()
    if standing.is_empty:
        added.insert += wanted
        standing.add(wanted)
        return added
    live, gone = standing.read()
    for draft, label_id in wanted:
        if live.knows(label_id, draft):
            added.already_there += 1
        elif gone.knows(label_id, draft):
            added.dropped[Reason.DELETED_BY_PERSON] += 1
        elif not multi_label and draft.kind == "class" and live.has_class:
            added.dropped[Reason.OUTRANKED] += 1
        else:
            added.insert.append((draft, label_id))
            live.note(label_id, draft)
    return added


class _Seen:
    """Annotations by what they say and by the prediction that they come from."""

    def __init__(self) -> None:
        self.has_class = False
        self._fingerprints: set[str] = set()
        self._keys: set[tuple[UUID | None, str, str]] = set()

    def note(self, label_id: UUID | None, row: Draft | Existing) -> None:
        self.has_class = self.has_class or row.kind == "class"
        self._keys.add((label_id, *_where(row)))
        if row.fingerprint:
            self._fingerprints.add(row.fingerprint)

    def knows(self, label_id: UUID, draft: Draft) -> bool:
        return draft.fingerprint in self._fingerprints or (label_id, *_where(draft)) in self._keys
