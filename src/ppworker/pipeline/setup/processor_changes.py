"""Changes post-processors that exist: their settings, whether they run, whether they are there."""

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any
from uuid import UUID

from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import Conflict, Invalid, NotFound, StoreRefused
from ppworker.pipeline.control import operate
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup.catalogue import checked_name
from ppworker.pipeline.setup.processors import Wanted, check_references, checked
from ppworker.runners import registry
from ppworker.store import items, job_operations, jobs, post_processors
from ppworker.store.datasets import Dataset
from ppworker.store.db import Tx
from ppworker.telemetry import REDACTED, redacted

CHUNK = 500
"""Jobs or items that one transaction touches."""

_OWN_WORDS = frozenset({"name", "description", "enabled"})
"""Settings that concern no model, so that they can change while its model is not there."""


def change(
    deps: Deps,
    user_id: UUID,
    dataset: Dataset,
    id_: UUID,
    changes: Mapping[str, Any],
    *,
    options: Mapping[str, Any] | None = None,
) -> PostProcessor:
    """Change settings of a post-processor; all that it is then is checked before it is written.

    Jobs that run end by the settings they began with, as far as the model is concerned. Pending
    jobs keep their order and budget. While it is disabled its pending jobs wait, and keep no later
    post-processor waiting.

    Args:
        deps: the collaborators.
        user_id: who changes it.
        dataset: whose post-processor it is.
        id_: which one.
        changes: names of fields of ``Wanted`` with their new values; secrets that are given
            back as they were shown, redacted, stay what they are.
        options: options of the runner, put beside those it has.

    Raises:
        NotFound: there is none, or it was deleted.
        Invalid: something of it could not work then.
        Conflict: the dataset has another one of that name.
    """

    def work(tx: Tx) -> PostProcessor:
        found = post_processors.lock_stored(tx, dataset.id, id_)
        if found is None:
            raise _gone(id_)
        changed = _changed(dataset, found.processor, changes, options or {})
        if options or changes.keys() - _OWN_WORDS:
            check_references(tx, user_id, dataset, changed)
        if post_processors.has_name(tx, dataset.id, changed.name, but=id_):
            raise _taken(changed.name)
        post_processors.update_post_processor(tx, changed)
        return changed

    try:
        changed = deps.db.transact(work)
    except StoreRefused:
        if "name" not in changes:
            raise
        # All else was checked: somebody took the name at the same moment.
        raise _taken(changes["name"]) from None
    if "enabled" in changes:  # also when it was so before: a repetition mends what a crash left
        _reconsider(deps, id_)
        if changed.enabled:
            deps.hint([id_])
    return changed


def delete(deps: Deps, dataset: Dataset, id_: UUID) -> None:
    """Take a post-processor out of its dataset.

    Its pending jobs go, running ones fail as cancelled and their answers are refused; jobs that are
    over stay readable under its name, and what it wrote stays.

    Raises:
        NotFound: there is none, or it was deleted before.
    """

    def work(tx: Tx) -> None:
        if post_processors.lock_stored(tx, dataset.id, id_) is None:
            raise _gone(id_)
        post_processors.mark_deleted(tx, id_)

    deps.db.transact(work)
    _end_jobs(deps, id_)


def end_jobs_of_deleted(deps: Deps) -> int:
    """End live jobs of deleted post-processors: what a crash left, or an upload of that moment.

    Safe to run anywhere, any number of times; returns how many jobs.
    """
    with deps.db.look() as tx:
        found = post_processors.find_deleted_with_jobs(tx)
    return sum(_end_jobs(deps, id_) for id_ in found)


def _changed(
    dataset: Dataset, found: PostProcessor, changes: Mapping[str, Any], options: Mapping[str, Any]
) -> PostProcessor:
    given, known = dict(changes), dict(found.runner_config)
    if given.get("runner", found.runner) != found.runner:
        given = {"model_id": None, "model_version": ""} | given
    if options or "runner_config" in given:
        own = restore(given["runner_config"], known) if "runner_config" in given else known
        given["runner_config"] = own | restore(options, known)
    if not given.keys() - _OWN_WORDS:
        if "name" in given:
            given["name"] = checked_name(given["name"])
        return replace(found, **given)
    wanted = Wanted(**{f.name: getattr(found, f.name) for f in fields(Wanted)} | given)
    return checked(dataset, wanted, by_path=_keeps_paths(found, wanted), id_=found.id)


def _keeps_paths(found: PostProcessor, wanted: Wanted) -> bool:
    """Whether paths that somebody with a shell chose stay as they are: a stranger chooses none."""
    if wanted.runner != found.runner:
        return False
    before, after = found.runner_config, wanted.runner_config
    return all(before.get(name) == after.get(name) for name in registry.spec(found.runner).paths)


def restore(
    given: Mapping[str, Any], stored: Mapping[str, Any], *, field: str = "runner_config"
) -> dict[str, Any]:
    """Options that were given, with secrets that were only shown redacted put back.

    Raises:
        Invalid: something is redacted that was not stored.
    """
    shown = redacted(stored)
    try:
        return {
            name: _restored(value, stored.get(name), shown.get(name), f"{field}.{name}")
            for name, value in given.items()
        }
    except RecursionError:
        raise Invalid("is nested too deeply", field=field) from None


def _restored(given: Any, stored: Any, shown: Any, field: str) -> Any:
    if given == shown:
        return stored
    if isinstance(given, Mapping):
        known = stored if isinstance(stored, Mapping) else {}
        seen = shown if isinstance(shown, Mapping) else {}
        return {
            key: _restored(value, known.get(key), seen.get(key), f"{field}.{key}")
            for key, value in given.items()
        }
    if isinstance(given, str) and REDACTED in given:
        raise Invalid(f"holds '{REDACTED}', which stands for no secret here", field=field)
    return given


def _reconsider(deps: Deps, id_: UUID) -> None:
    """Decide anew which jobs wait for those of a post-processor, items by items."""
    after: UUID | None = None
    while True:
        with deps.db.look() as tx:
            found = job_operations.find_kept_waiting(tx, id_, after=after, limit=CHUNK)
        if not found:
            return
        deps.hint(deps.db.transact(partial(_recompute, item_ids=found)))
        after = found[-1]


def _recompute(tx: Tx, *, item_ids: list[UUID]) -> set[UUID]:
    items.lock_items(tx, item_ids)
    return jobs.recompute_ready(tx, item_ids)


def _end_jobs(deps: Deps, id_: UUID) -> int:
    after: UUID | None = None
    ended = 0
    while True:
        with deps.db.look() as tx:
            found = job_operations.find_live(tx, id_, after=after, limit=CHUNK)
        if not found:
            return ended
        gone, cancelled, woken = deps.db.transact(partial(_end_chunk, found=found))
        deps.emit([operate.cancelled_event(job) for job in cancelled])
        deps.hint(woken)
        ended += len(gone) + len(cancelled)
        after = found[-1][0]


def _end_chunk(
    tx: Tx, *, found: list[tuple[UUID, UUID]]
) -> tuple[list[UUID], list[job_operations.Cancelled], set[UUID]]:
    ids, item_ids = [id_ for id_, _ in found], [item_id for _, item_id in found]
    items.lock_items(tx, item_ids)
    gone = job_operations.delete_pending(tx, ids)
    cancelled = job_operations.cancel(tx, ids)
    return gone, cancelled, jobs.recompute_ready(tx, item_ids)


def _gone(id_: UUID) -> NotFound:
    return NotFound(f"no post-processor {id_}", field="post_processor")


def _taken(name: str) -> Conflict:
    return Conflict(
        f"a post-processor named '{name}' exists already; choose another name", field="name"
    )
