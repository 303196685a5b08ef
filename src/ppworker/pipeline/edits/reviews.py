"""Accepts and rejects suggestions: some by their ids at once, or all that match, step by step."""

from collections import Counter
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from ppworker.domain import edit
from ppworker.domain.edit import Action, Verdict
from ppworker.errors import Conflict
from ppworker.pipeline.control.operations import Chunk, Write
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.edits import annotations, passage
from ppworker.pipeline.edits.annotations import Shown
from ppworker.pipeline.edits.held import held
from ppworker.pipeline.edits.passage import Passage
from ppworker.store import edits, suggestions
from ppworker.store.db import Tx
from ppworker.store.operations import Operation
from ppworker.store.suggestions import Suggestions

KIND = "review"
MOST = 1_000
"""Most annotations that are reviewed in one transaction."""
MISSING = "missing"
"""Counted beside the verdicts: the version has no such annotation."""

_WRITES = {"accept": edits.accept, "reject": edits.reject}
_DONE = {"accept": "annotations_accepted", "reject": "annotations_rejected"}


def review(deps: Deps, version_id: UUID, ids: Collection[UUID], action: Action) -> Counter[str]:
    """Review annotations in one transaction; returns how many met which `Verdict`, or none.

    Args:
        deps: the collaborators.
        version_id: of a dataset that the caller may write to.
        ids: at most `MOST`; those of other versions count as missing.
        action: what to say of them.
    """

    def work(tx: Tx) -> Counter[str]:
        found = edits.find_items_of(tx, version_id, set(ids))
        with held(tx, version_id, set(found.values())):
            states = edits.read_reviews(tx, version_id, found)
            verdicts = {id_: edit.review(action, state) for id_, state in states.items()}
            changed = [id_ for id_, verdict in verdicts.items() if verdict is Verdict.CHANGED]
            if changed:
                _WRITES[action](tx, changed)
        counts = Counter(str(verdict) for verdict in verdicts.values())
        counts[MISSING] = len(set(ids)) - len(verdicts)
        return counts

    return deps.db.transact(work)


def review_one(deps: Deps, version_id: UUID, id_: UUID, action: Action) -> Shown:
    """Review one annotation; a second time changes nothing.

    Raises:
        NotFound: the version has no such annotation.
        Conflict: a person decided otherwise before.
    """
    counts = review(deps, version_id, [id_], action)
    with deps.db.look() as tx:
        found = annotations.find(tx, version_id, id_, buried=True)
    if counts[Verdict.CONFLICT]:
        other = "change or delete it instead" if action == "reject" else "annotate anew instead"
        raise Conflict(
            f"annotation {id_} is {found.row.review} already; {other}", field="annotation"
        )
    return found


def begin(deps: Deps, dataset_id: UUID, user_id: UUID, wanted: Suggestions, action: Action) -> UUID:
    """Create the operation that reviews every suggestion that matches; returns its id.

    Args:
        deps: the collaborators.
        dataset_id: of the version.
        user_id: the dataset's owner.
        wanted: which ones; what is suggested later on an item that it passed is not reached.
        action: what to say of them.
    """
    arguments = {
        "action": action,
        "version_id": str(wanted.version_id),
        "post_processor_id": _text(wanted.post_processor_id),
        "label_id": _text(wanted.label_id),
        "source": wanted.source,
        "min_score": wanted.min_score,
        "max_score": wanted.max_score,
    }
    on_its_way = passage.Begun(
        kind=KIND,
        dataset_id=dataset_id,
        user_id=user_id,
        version_id=wanted.version_id,
        arguments=arguments,
    )
    return passage.begin(deps, on_its_way)


def step(deps: Deps, operation: Operation) -> Write:
    """Prepare the next chunk of a review, as `ppworker.pipeline.control.operations.Step` asks.

    Raises:
        NotFound: the version was deleted.
    """
    wanted = _wanted(operation.arguments)
    passed = passage.prepare(deps, operation, wanted)
    return partial(_write, operation, wanted, passed)


def _write(operation: Operation, wanted: Suggestions, passed: Passage, tx: Tx) -> Chunk:
    action: Action = operation.arguments["action"]
    with held(tx, wanted.version_id, passed.items):
        found = suggestions.find_suggestions(tx, wanted, passed.items)
        if found:
            _WRITES[action](tx, found)
    return passed.chunk({_DONE[action]: len(found), "items_changed": len(set(found.values()))})


def _wanted(arguments: Mapping[str, Any]) -> Suggestions:
    return Suggestions(
        version_id=UUID(arguments["version_id"]),
        post_processor_id=_id(arguments["post_processor_id"]),
        label_id=_id(arguments["label_id"]),
        source=arguments["source"],
        min_score=arguments["min_score"],
        max_score=arguments["max_score"],
    )


def _text(id_: UUID | None) -> str | None:
    return None if id_ is None else str(id_)


def _id(text: str | None) -> UUID | None:
    return None if text is None else UUID(text)
