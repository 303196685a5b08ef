"""Takes inferences made elsewhere: checks them all, then commits to applying them, or neither.

Nothing is applied here. The operation that is created does it, in resumable chunks
(`ppworker.pipeline.inferences.apply_inferences`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from ppworker.domain import given
from ppworker.domain.events import OperationMoved
from ppworker.domain.job import Status
from ppworker.errors import Conflict, Invalid, NotFound
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.inferences.inference_lines import (
    Place,
    Staged,
    as_file,
    lines_from,
    lines_of,
)
from ppworker.store import blobs, idempotency, inferences, operations
from ppworker.store.datasets import Split
from ppworker.store.db import Tx
from ppworker.store.ids import new_id

KIND = "apply_inferences"
"""The kind of operation."""
_MOST_KEY = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """Inferences that passed the check, and the operation that applies them."""

    operation_id: UUID
    total: int
    """Inferences it holds."""
    repeated: bool = False
    """The idempotency key was known: this is the operation of the first time."""


def add(
    deps: Deps,
    split: Split,
    given_inferences: Iterable[Mapping[str, Any]],
    *,
    keep_annotations: bool = True,
    key: str | None = None,
    digest: str | None = None,
    kept_by: UUID | None = None,
) -> Accepted:
    """Accept inferences for a split.

    Args:
        deps: the collaborators.
        split: where their items go.
        given_inferences: as the public contract writes them, any number.
        keep_annotations: whether their predictions become annotations, or only items are added.
        key: idempotency key; the same key with the same inferences names the first operation.
        digest: hash by which the same request is recognised; by default one of its content.
        kept_by: whose kept inferences are told which items they became; None tells nobody.

    Raises:
        Invalid: one breaks a rule; its field is ``inferences[17].inference_items[0].confidence``,
            for instance. Nothing is written.
        Conflict: the key was used for something else.
    """
    lines = lines_from(given_inferences)
    return _stage(deps, split, lines, keep_annotations, key, digest, kept_by=kept_by)


def add_file(
    deps: Deps,
    split: Split,
    path: Path,
    *,
    keep_annotations: bool = True,
    key: str | None = None,
    digest: str | None = None,
) -> Accepted:
    """Accept the inferences of a JSON Lines file, one a line; as ``add``.

    Raises:
        Invalid: a line breaks a rule; its field begins with ``line 18``.
        Conflict: as ``add``.
        OSError: the file cannot be read.
    """
    return _stage(deps, split, lines_of(path, _most_line(deps)), keep_annotations, key, digest)


def find_items(
    deps: Deps, split: Split, given_inferences: Sequence[Mapping[str, Any]]
) -> list[UUID | None]:
    """The item that each inference became, in their order; None where it became none (yet)."""
    ids = [given.read(each).external_id for each in given_inferences]
    with deps.db.look() as tx:
        found = inferences.items_of(tx, split.dataset_id, ids)
    return [found.get(id_) for id_ in ids]


def _most_line(deps: Deps) -> int:
    """Bytes of a line at most: a text may be written in escapes, and predictions stand beside."""
    return 4 * deps.settings.max_text_bytes + 1024 * 1024


def _stage(
    deps: Deps,
    split: Split,
    source: Iterable[tuple[bytes, Place]],
    keep_annotations: bool,  # noqa: FBT001  passed through
    key: str | None,
    digest: str | None,
    *,
    kept_by: UUID | None = None,
) -> Accepted:
    if key is not None and not 1 <= len(key) <= _MOST_KEY:
        raise Invalid(f"has 1 to {_MOST_KEY} characters", field="key")
    staged = Staged(
        source, most_text_bytes=deps.settings.max_text_bytes, most_bytes=_most_line(deps)
    )
    with deps.blobs.receive(as_file(staged), limit=deps.settings.max_file_bytes) as path:
        deps.blobs.keep(path, staged.sha256)
    arguments = {
        "split_id": str(split.id),
        "blob": staged.sha256,
        "keep_annotations": keep_annotations,
    }
    if kept_by is not None:
        arguments["kept_by"] = str(kept_by)
    content = hashlib.sha256(json.dumps([KIND, arguments], sort_keys=True).encode()).hexdigest()
    digest = digest or content
    operation_id = new_id()

    def write(tx: Tx) -> Accepted:
        if key is not None:
            known = idempotency.claim_key(tx, split.user_id, key, digest, [operation_id])
            if known is not None:
                return _first_time(tx, split, key, known, digest)
        blobs.insert_blobs(tx, {staged.sha256: staged.size_bytes})
        operations.insert_operation(
            tx,
            operation_id,
            split.user_id,
            kind=KIND,
            arguments=arguments,
            dataset_id=split.dataset_id,
            total=staged.total,
        )
        return Accepted(operation_id=operation_id, total=staged.total)

    accepted = deps.db.transact(write)
    if not accepted.repeated:
        deps.emit([_planned(operation_id)])
    return accepted


def _first_time(
    tx: Tx, split: Split, key: str, known: idempotency.KnownKey, digest: str
) -> Accepted:
    if known.request_sha256 != digest:
        raise Conflict(f"key '{key}' was used for something else; choose a new key", field="key")
    found = operations.find_operation(tx, split.user_id, known.ids[0])
    if found is None:
        raise NotFound(f"the operation that key '{key}' stood for is gone", field="key")
    return Accepted(operation_id=found.id, total=found.total or 0, repeated=True)


def _planned(operation_id: UUID) -> OperationMoved:
    return OperationMoved(
        operation_id=operation_id, kind=KIND, source=None, to=Status.PENDING, cause="planned"
    )
