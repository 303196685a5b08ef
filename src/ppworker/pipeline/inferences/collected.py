"""Keeps what models said, by who asked, until it becomes items of a dataset.

An inference is its asker's alone. When it is added to a split, its file and its text come with it
from here, so that a client need not send them again, and nobody gets a file by an id.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from ppworker.domain.text import clean_json, clean_text
from ppworker.errors import Invalid, NotFound
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.inferences.predict import Input, Said
from ppworker.pipeline.setup.models import Chosen
from ppworker.pipeline.uploads import media, sources
from ppworker.pipeline.uploads.names import clean_name, extension_of
from ppworker.runners.inspector import Inspection
from ppworker.store import blobs, inferences, model_inferences
from ppworker.store.datasets import Split, as_id
from ppworker.store.db import Tx
from ppworker.store.ids import new_id
from ppworker.store.model_inferences import ModelInference

MAX_WORD = 1_000
"""Characters of what is a word or a name."""
MAX_LONG = 100_000
"""Characters of the other texts, those that may become an item's excepted."""
_WORDS = frozenset({"prediction", "extension", "inference_time", "end_to_end_time",
                    "inference_host", "application_id"})  # fmt: skip
_TEXTS = frozenset({"name", "result"})
_CHANGEABLE = frozenset({"name", "description", "result", "error", "error_reported", "hidden",
                         "config"})  # fmt: skip
"""What a change may touch: what a person says of an inference, not what the model said."""


def keep(deps: Deps, user_id: UUID, chosen: Chosen, given: Input, said: Said) -> ModelInference:
    """Store what a model said, with what it was asked unless the model keeps that private."""
    items = [_item(draft.label, draft.score, draft.coordinates) for draft in said.predictions]
    scored = max(said.predictions, key=lambda draft: draft.score or 0, default=None)
    found = said.media
    values: dict[str, Any] = {
        "model_id": chosen.model_id,
        "model_version_id": chosen.version_id,
        "application_id": chosen.application_id,
        "name": clean_name(given.name) if found else clean_text(given.text or "")[0],
        "extension": found.extension if found else "",
        "media_type": found.media_type if found else "text/plain",
        "prediction": scored.label if scored else "",
        "confidence": scored.score if scored else None,
        "items": items,
        "result": said.text,
        "inference_time": duration(said.model_s),
        "end_to_end_time": duration(said.whole_s),
        "config": json.dumps({"model_version": said.model_version} if said.model_version else {}),
        "privacy_enabled": chosen.privacy_enabled,
    }
    if chosen.privacy_enabled:
        values["name"] = ""
    elif given.path is not None:
        values["content_sha256"] = sources.keep_received(deps, user_id, given.path)
    return _insert(deps, user_id, values)


def add(deps: Deps, user_id: UUID, chosen: Chosen, given: Mapping[str, Any]) -> ModelInference:
    """Store what a model said elsewhere; its file may follow.

    Raises:
        Invalid: a value breaks a rule; names it.
    """
    values = _checked(deps, {k: v for k, v in given.items() if k != "inference_items"})
    predictions = given.get("inference_items") or ()
    values["items"] = [
        _item(each.get("prediction"), each.get("confidence"), each.get("coordinates"))
        for each in predictions
    ]
    values["extension"] = extension_of(f"x.{values.get('extension', '').lstrip('.')}")
    values |= {
        "model_id": chosen.model_id,
        "model_version_id": chosen.version_id,
        "application_id": values.get("application_id") or chosen.application_id,
    }
    return _insert(deps, user_id, values)


def change(deps: Deps, user_id: UUID, id_: UUID, given: Mapping[str, Any]) -> ModelInference:
    """Change what a person says of an inference; what the model said stays, predictions too.

    Raises:
        Invalid: a value breaks a rule; names it.
        NotFound: the user has no such inference.
    """
    values = _checked(deps, {k: v for k, v in given.items() if k in _CHANGEABLE})
    return _change(deps, user_id, id_, lambda _: values)


def put_file(deps: Deps, user_id: UUID, id_: UUID, given: Input) -> ModelInference:
    """Give an inference the file it was made from, or another one in its place.

    Raises:
        NotFound: the user has no such inference.
    """
    if given.path is None:
        raise ValueError("no file")
    name = clean_name(given.name)
    with Inspection(max_text_bytes=deps.settings.max_text_bytes) as inspection:
        found = media.inspect(given.path, name, inspection)
    sha256 = sources.keep_received(deps, user_id, given.path)

    def values(there: ModelInference) -> dict[str, Any]:
        return {
            "name": there.name if there.extension and there.name else name,
            "extension": found.extension,
            "media_type": found.media_type,
            "content_sha256": sha256,
        }

    return _change(deps, user_id, id_, values)


def duration(seconds: float) -> str:
    """Seconds as clients write them: ``228.278543ms``, ``1.5s``, ``2m3.25s``."""
    if seconds < 1:
        return f"{_short(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 9), 60)
    return f"{int(minutes)}m{_short(rest)}s" if minutes else f"{_short(rest)}s"


def _short(number: float) -> str:
    return f"{number:.6f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """Inferences to be added, with what is kept here of them."""

    inferences: list[dict[str, Any]]
    has_kept: bool
    """Whether any of them is kept here."""


def complete(
    deps: Deps, user_id: UUID, split: Split, sent: Sequence[Mapping[str, Any]]
) -> Completed:
    """Put to inferences that are about to be added what is kept here of those with their ids.

    A file comes with its inference. What was sent wins otherwise; an inference that says nothing
    but its id is taken as it is kept.

    Args:
        deps: the collaborators.
        user_id: who adds them; only this person's are looked at.
        split: where they go, perhaps in somebody else's dataset.
        sent: as the public contract writes them.

    Raises:
        Invalid: one names a stored file that is not the person's.
    """
    ids = {id_ for each in sent if (id_ := as_id(_word(each, "id")))}
    with deps.db.look() as tx:
        kept = model_inferences.find_inferences(tx, user_id, ids) if ids else {}
        if split.user_id != user_id:
            _check_files(tx, user_id, sent)
    made = []
    for each in sent:
        id_ = as_id(_word(each, "id"))
        row = kept.get(id_) if id_ else None
        made.append(dict(each) if row is None else _completed(each, row))
    if split.user_id != user_id:
        files = sorted({blob for each in made if (blob := _word(each, "blob").lower())})
        deps.db.transact(partial(_hand_over, owner_id=split.user_id, files=files))
    return Completed(inferences=made, has_kept=bool(kept))


def _check_files(tx: Tx, user_id: UUID, sent: Sequence[Mapping[str, Any]]) -> None:
    """Nobody adds a file of whoever shares a dataset with them by its hash alone."""
    named = {blob for each in sent if (blob := _word(each, "blob").lower())}
    owned = inferences.find_owned_blobs(tx, user_id, named) if named else set()
    for position, each in enumerate(sent):
        blob = _word(each, "blob").lower()
        if blob and blob not in owned:
            raise Invalid("is no stored file of yours", field=f"inferences[{position}].blob")


def _hand_over(tx: Tx, *, owner_id: UUID, files: Sequence[str]) -> None:
    for sha256 in files:
        blobs.own(tx, owner_id, sha256)


def _completed(sent: Mapping[str, Any], kept: Any) -> dict[str, Any]:
    made = dict(sent)
    said = ("name", "result", "prediction", "inference_items")
    if not any(sent.get(key) for key in said):
        made |= {"name": kept.name, "result": kept.result, "prediction": kept.prediction}
        made |= {"confidence": kept.confidence, "inference_items": list(kept.items)}
    for key in ("name", "extension"):
        made[key] = made.get(key) or getattr(kept, key)
    if kept.content_sha256 is not None:
        made["blob"] = kept.content_sha256
    made["model_version_id"] = made.get("model_version_id") or str(kept.model_version_id or "")
    # It says what it became last, perhaps in another dataset; here its id tells.
    if _word(sent, "dataset_item_id") == str(kept.dataset_item_id or ""):
        made["dataset_item_id"] = ""
    return made


def _word(raw: Mapping[str, Any], key: str) -> str:
    value = raw.get(key)
    return value.strip() if isinstance(value, str) else ""


def _item(label: str | None, score: float | None, coordinates: str | None) -> dict[str, Any]:
    return {
        "id": str(new_id()),
        "prediction": clean_text(label or "")[0],
        "confidence": score,
        "coordinates": clean_text(coordinates or "")[0],
    }


def _checked(deps: Deps, given: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in given.items():
        if not isinstance(value, str):
            values[name] = clean_json(value)[0]
            continue
        values[name] = clean_text(value)[0]
        if name in _TEXTS:
            most = deps.settings.max_text_bytes
            if len(value.encode("utf-8", "replace")) > most:
                raise Invalid(f"has more than {most} bytes", field=name)
        elif len(value) > (MAX_WORD if name in _WORDS else MAX_LONG):
            raise Invalid("is too long", field=name)
    return values


def _insert(deps: Deps, user_id: UUID, values: Mapping[str, Any]) -> ModelInference:
    id_ = deps.db.transact(lambda tx: model_inferences.insert_inference(tx, user_id, values))
    with deps.db.look() as tx:
        found = model_inferences.find_inference(tx, user_id, id_)
    if found is None:
        raise _gone(id_)
    return found


def _change(deps: Deps, user_id: UUID, id_: UUID, values: Any) -> ModelInference:
    def work(tx: Tx) -> ModelInference | None:
        there = model_inferences.find_inference(tx, user_id, id_, lock=True)
        if there is None:
            raise _gone(id_)
        model_inferences.update_inference(tx, id_, values(there))
        return model_inferences.find_inference(tx, user_id, id_)

    found = deps.db.transact(work)
    if found is None:
        raise _gone(id_)
    return found


def _gone(id_: UUID) -> NotFound:
    return NotFound(f"there is no inference '{id_}' here", field="inference")
