"""Models of people: made, changed, deleted, and found together with the built-in ones.

A model of one's own names a runner and its options in its ``config``, JSON text:
``{"runner": "usaddress", "runner_config": {"max_chars": 500}}``. Without a runner it only collects
inferences that were made elsewhere. A version may hold a ``config`` that stands for its model's.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from ppworker.domain.text import clean_json, clean_text
from ppworker.errors import Conflict, Forbidden, Invalid, NotFound
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup.built_in_models import BuiltIn, find_built_in
from ppworker.pipeline.setup.processor_changes import restore
from ppworker.pipeline.uploads.names import shown_name
from ppworker.runners import registry
from ppworker.runners.base import RunnerSpec
from ppworker.store import models
from ppworker.store.datasets import as_id
from ppworker.store.db import Tx
from ppworker.store.models import Model, ModelVersion
from ppworker.telemetry import REDACTED, redacted

MOST = 1000
"""Models of one person, and versions of one model."""
MAX_NAME = 255
"""Characters of a name, and of other words."""
MAX_LONG = 100_000
"""Characters of the other texts."""
_LONG = frozenset({"description", "notes", "config"})
_KNOWN = frozenset({"runner", "runner_config"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A model that somebody names, ready to be asked."""

    model_id: UUID
    version_id: UUID | None
    application_id: str
    runner: str
    """Empty where the model only collects."""
    runner_config: Mapping[str, Any] = field(default_factory=dict)
    privacy_enabled: bool = False

    def spec(self) -> RunnerSpec:
        """What its runner declares.

        Raises:
            Conflict: it has none.
            Invalid: it cannot run here.
        """
        if not self.runner:
            raise Conflict(
                "this model only collects inferences; name a runner in its config, as "
                '{"runner": "magika"}',
                field="model_id",
            )
        return registry.check(self.runner, self.runner_config)


def choose(tx: Tx, user_id: UUID, model_id: str, version: str | None = None) -> Chosen:
    """A built-in model, or one of the user's.

    Args:
        tx: where to look.
        user_id: who asks.
        model_id: its id.
        version: id, name or ``version`` of one of its versions; None is the active one, if any.

    Raises:
        NotFound: the user has no such model, or it has no such version; ``field`` tells which.
    """
    id_ = as_id(model_id)
    built_in = find_built_in(id_) if id_ else None
    if built_in is not None:
        return _choose_built_in(built_in, version)
    model = models.find_model(tx, user_id, id_) if id_ else None
    if model is None:
        raise NotFound(f"there is no model '{model_id}' here", field="model_id")
    found = _version_of(tx, model, version)
    config = _read(model.config)
    if found is not None and _read(found.config).get("runner"):
        config = _read(found.config)
    return Chosen(
        model_id=model.id,
        version_id=None if found is None else found.id,
        application_id=(found.application_id if found else "") or model.application_id,
        runner=config.get("runner") or "",
        runner_config=config.get("runner_config") or {},
        privacy_enabled=model.privacy_enabled,
    )


def _choose_built_in(built_in: BuiltIn, version: str | None) -> Chosen:
    known = {str(built_in.version_id), built_in.framework_version, "v1"} - {""}
    if version is not None and version not in known:
        raise NotFound(f"the model has no version '{version}'", field="model_version")
    return Chosen(
        model_id=built_in.id,
        version_id=built_in.version_id,
        application_id=str(built_in.application_id),
        runner=built_in.runner,
    )


def _version_of(tx: Tx, model: Model, version: str | None) -> ModelVersion | None:
    if version is None:
        active = model.active_version_id
        return models.find_version(tx, model.id, active) if active else None
    there = models.list_versions(tx, model.id, limit=MOST)
    for name in ("id", "version", "name"):
        for each in there:
            if str(getattr(each, name)) == version:
                return each
    raise NotFound(f"the model has no version '{version}'", field="model_version")


def can_inference(config: str) -> bool:
    """Whether a model with that config can be asked here."""
    read = _read(config)
    runner = read.get("runner")
    if not runner:
        return False
    try:
        registry.check(runner, read.get("runner_config") or {})
    except Invalid:
        return False
    return True


def shown_config(config: str) -> str:
    """A config as it may be shown: the very text, or without what looks like a secret."""
    try:
        value = json.loads(config)
        shown = redacted(value)
        return config if shown == value else json.dumps(shown, ensure_ascii=False)
    except (ValueError, RecursionError):  # what other programs keep there may be anything
        return str(redacted(config))


def create(deps: Deps, user_id: UUID, given: Mapping[str, Any]) -> UUID:
    """Make a model, which may have no name; returns its id.

    Raises:
        Invalid: a value breaks a rule; names it.
        Conflict: the user has too many.
    """
    values = {"name": ""} | _checked(given, before="")
    values.pop("active_version_id", None)  # it has no versions yet

    def work(tx: Tx) -> UUID:
        if models.count_models(tx, user_id) >= MOST:
            raise Conflict(f"you have {MOST} models; delete one first")
        return models.insert_model(tx, user_id, values)

    return deps.db.transact(work)


def change(deps: Deps, user_id: UUID, id_: UUID, given: Mapping[str, Any]) -> None:
    """Change a model; what is not given stays.

    Raises:
        Invalid: as ``create``.
        Conflict: the active version is none of its versions.
        NotFound: the user has no such model.
        Forbidden: it is a built-in one.
    """
    refuse_built_in(id_)

    def work(tx: Tx) -> None:
        model = _held(tx, user_id, id_)
        values = _checked(given, before=model.config)
        active = values.get("active_version_id")
        if active is not None and models.find_version(tx, id_, active) is None:
            raise Conflict("the model has no such version", field="active_version_id")
        models.update_model(tx, id_, values)

    deps.db.transact(work)


def delete(deps: Deps, user_id: UUID, id_: UUID) -> None:
    """Take a model away; its inferences stay under their own ids, post-processors run on.

    Raises:
        NotFound: the user has no such model.
        Forbidden: it is a built-in one.
    """
    refuse_built_in(id_)

    def work(tx: Tx) -> None:
        _held(tx, user_id, id_)
        models.mark_model_deleted(tx, id_)

    deps.db.transact(work)


def create_version(deps: Deps, user_id: UUID, model_id: UUID, given: Mapping[str, Any]) -> UUID:
    """Make a version of a model; the first one is its active one. Returns its id.

    Raises:
        Invalid: a value breaks a rule; names it.
        NotFound: the user has no such model.
        Conflict: it has too many versions.
        Forbidden: it is a built-in one.
    """
    refuse_built_in(model_id)
    values = _checked(given, before="")

    def work(tx: Tx) -> UUID:
        model = _held(tx, user_id, model_id)
        if len(models.list_versions(tx, model_id, limit=MOST)) >= MOST:
            raise Conflict(f"the model has {MOST} versions; delete one first")
        values.setdefault("application_id", model.application_id)
        id_ = models.insert_version(tx, model, values)
        if model.active_version_id is None:
            models.update_model(tx, model_id, {"active_version_id": id_})
        return id_

    return deps.db.transact(work)


def change_version(
    deps: Deps, user_id: UUID, model_id: UUID, id_: UUID, given: Mapping[str, Any]
) -> None:
    """Change a version; what is not given stays, and so do its metrics.

    Raises:
        Invalid: a value breaks a rule; names it.
        NotFound: the user has no such model, or it has no such version.
        Forbidden: it is a built-in one.
    """
    refuse_built_in(model_id)

    def work(tx: Tx) -> None:
        _held(tx, user_id, model_id)
        version = models.find_version(tx, model_id, id_, lock=True)
        if version is None:
            raise _no_version(id_)
        values = _checked(given, before=version.config)
        values.pop("metrics", None)
        models.update_version(tx, id_, values)

    deps.db.transact(work)


def delete_version(deps: Deps, user_id: UUID, model_id: UUID, id_: UUID) -> None:
    """Take a version away; if it was the active one, the model has none then.

    Raises:
        NotFound: the user has no such model, or it has no such version.
        Forbidden: it is a built-in one.
    """
    refuse_built_in(model_id)

    def work(tx: Tx) -> None:
        model = _held(tx, user_id, model_id)
        if models.find_version(tx, model_id, id_, lock=True) is None:
            raise _no_version(id_)
        models.mark_version_deleted(tx, id_)
        if model.active_version_id == id_:
            models.update_model(tx, model_id, {"active_version_id": None})

    deps.db.transact(work)


def refuse_built_in(id_: UUID) -> None:
    """Keep a built-in model as it is.

    Raises:
        Forbidden: that is one.
    """
    if find_built_in(id_) is not None:
        raise Forbidden(
            "a built-in model is everybody's and stays as it is; make one of your own that names "
            "the same runner in its config",
            field="model_id",
        )


def _held(tx: Tx, user_id: UUID, id_: UUID) -> Model:
    model = models.find_model(tx, user_id, id_, lock=True)
    if model is None:
        raise NotFound(f"there is no model '{id_}' here", field="model_id")
    return model


def _no_version(id_: UUID) -> NotFound:
    return NotFound(f"the model has no version '{id_}'", field="version")


def _checked(given: Mapping[str, Any], *, before: str) -> dict[str, Any]:
    """Values as they are stored; ``before`` is the config that there was."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, str):
            most = MAX_LONG if name in _LONG else MAX_NAME
            if len(value) > most:
                raise Invalid(f"has at most {most} characters", field=name)
            values[name] = clean_text(value)[0]
        else:
            values[name] = value
    if "name" in values:
        values["name"] = shown_name(values["name"])
        if not values["name"]:
            del values["name"]  # as null
    if "config" in values:
        values["config"] = _config(values["config"], before)
    if "metrics" in values:
        values["metrics"], _ = clean_json(values["metrics"])
    return values


def _config(text: str, before: str) -> str:
    """A config that can be stored: where it names a runner, the runner takes its options."""
    value = _parsed(text)
    if not isinstance(value, dict):
        return text
    if REDACTED in text:
        value = restore(value, _read(before), field="config")
        text = _dumped(value)
    if "runner" not in value:
        return text
    runner, options = value["runner"], value.get("runner_config")
    if not isinstance(runner, str) or not isinstance(options, dict | None):
        raise Invalid(
            "runner is the name of one, and runner_config an object of its options",
            field="config",
        )
    unknown = sorted(value.keys() - _KNOWN)
    if unknown:
        raise Invalid(
            f"with a runner it holds runner and runner_config, not {', '.join(unknown)}",
            field="config",
        )
    if clean_json(value)[1]:
        raise Invalid("holds what JSON or PostgreSQL cannot store", field="config")
    try:
        registry.check(runner, options or {}, by_path=False)
    except Invalid as error:
        error.field = f"config.{error.field}"
        raise
    return text


def _dumped(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise Invalid("is nested too deeply", field="config") from None


def _parsed(text: str) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None  # what other programs keep there is theirs


def _read(text: str) -> dict[str, Any]:
    value = _parsed(text)
    return value if isinstance(value, dict) else {}
