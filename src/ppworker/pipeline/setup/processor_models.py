"""Gives post-processors the runner and the options of a model that somebody names.

They are taken over as they are at that moment: a later change of the model changes no
post-processor, and its deletion ends none. Naming the model again takes it as it is then.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import Conflict, Invalid, NotFound
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup.models import Chosen, choose


def with_model(
    deps: Deps,
    user_id: UUID,
    given: Mapping[str, Any],
    model_id: str,
    version: str,
    *,
    stored: PostProcessor | None = None,
) -> dict[str, Any]:
    """Settings of a post-processor together with what the model brings.

    Args:
        deps: the collaborators.
        user_id: whose model it is.
        given: settings that were asked for beside the model; options among them win.
        model_id: the model, empty where the stored one is meant.
        version: id, name or ``version`` of one of its versions; empty for its active one.
        stored: the post-processor as it is, None for a new one.

    Raises:
        Invalid: the user has no such model, it has no such version, it cannot be asked here, or
            another runner is asked for beside it.
    """
    known = "" if stored is None or stored.model_id is None else str(stored.model_id)
    model_id = model_id or known
    if not model_id:
        raise Invalid("goes with a model_id", field="model_version")
    is_known = stored is not None and model_id == known
    if stored is not None and is_known:
        version = version or stored.model_version
        is_known = version == stored.model_version
    if stored is not None and is_known and "runner" in given:
        # The whole of it was sent back as it was read.
        _check_runner(given, stored.runner)
        return dict(given)
    try:
        with deps.db.look() as tx:
            chosen = choose(tx, user_id, model_id, version or None)
    except NotFound as error:
        if is_known:
            return dict(given)  # it is gone, and what was taken from it stays
        raise Invalid(str(error), field=error.field) from None
    return _taken(chosen, given, version)


def _taken(chosen: Chosen, given: Mapping[str, Any], version: str) -> dict[str, Any]:
    try:
        chosen.spec()
    except Conflict as error:
        raise Invalid(str(error), field=error.field) from None
    _check_runner(given, chosen.runner)
    return {
        **given,
        "runner": chosen.runner,
        "runner_config": {**chosen.runner_config, **given.get("runner_config", {})},
        "model_id": chosen.model_id,
        "model_version": version,
    }


def _check_runner(given: Mapping[str, Any], runner: str) -> None:
    if given.get("runner", runner) != runner:
        raise Invalid(
            f"the model runs '{runner}'; name a model or a runner, not both", field="model_id"
        )
