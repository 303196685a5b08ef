"""Operations of every kind, begun as the API begins them, and what must be there when they end."""

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from ppworker.chaos.load import Load
from ppworker.errors import Conflict
from ppworker.pipeline.control import operations as control
from ppworker.pipeline.control import reapply
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.edits import reviews, undo
from ppworker.pipeline.inferences import inferences
from ppworker.pipeline.transfer import bulk, delete, duplicate, export, import_items
from ppworker.store import datasets, operations, versions
from ppworker.store.ids import new_id
from ppworker.store.results import Scope
from ppworker.store.suggestions import Suggestions

ITEMS = 300
"""Items of the dataset that operations work on: some chunks."""
LINES = 300
"""Items and inferences that operations bring."""


@dataclass(slots=True)
class LongWork:
    """A dataset whose jobs are over, and the operations that were begun on it.

    Begin kinds in the order of ``kinds``: the later ones work on what the first one made.
    """

    load: Load
    begun: dict[str, list[UUID]] = field(default_factory=dict)
    _copies: dict[str, list[UUID]] = field(default_factory=dict)
    _targets: dict[str, list[datasets.Dataset]] = field(default_factory=dict)

    @property
    def kinds(self) -> dict[str, Callable[[], UUID]]:
        """How an operation of each kind is begun; its id."""
        return {
            duplicate.KIND: self._duplicate,
            reapply.KIND: self._reapply,
            reviews.KIND: self._review,
            undo.KIND: self._undo,
            export.KIND: self._export,
            delete.KIND: self._delete,
            import_items.KIND: self._import,
            inferences.KIND: self._infer,
        }

    def feed(self, kind: str) -> Callable[[], None]:
        """Begins one more whenever none of the kind waits."""

        def feed() -> None:
            if not self._waiting(kind):
                self.begun.setdefault(kind, []).append(self.kinds[kind]())

        return feed

    def broken(self) -> list[str]:
        """What is not as it must be, once all operations are over."""
        rows = self.load.cluster.sql(
            "SELECT kind, status, count(*) AS n, max(attempts) AS attempts, max(error) AS error, "
            "count(*) FILTER (WHERE done <> total) AS unfinished FROM operations GROUP BY 1, 2"
        )
        found = [
            f"{r.n} of {r.kind} {r.status}: {r.error}" for r in rows if r.status != "completed"
        ]
        found += [f"{r.unfinished} of {r.kind} not done to the end" for r in rows if r.unfinished]
        found += [f"{r.kind}: {r.attempts} attempts" for r in rows if r.attempts > 2]  # noqa: PLR2004  one death each
        found += [each for judge in self._judges() for each in judge]
        return found

    def _waiting(self, kind: str) -> int:
        return int(
            self.load.cluster.one(
                "SELECT count(*) FROM operations WHERE kind = :kind AND status = 'pending'",
                kind=kind,
            )
        )

    # How each kind is begun.

    def _version(self, version_id: UUID | None = None) -> versions.Version:
        with self.load.cluster.db.begin() as tx:
            wanted = version_id or self.load.split.version_id
            found = versions.find_version(tx, self.load.user_id, None, wanted)
        if found is None:
            raise Conflict(f"version {wanted} is gone")
        return found

    def _copy(self, purpose: str) -> UUID:
        """A copy of the version, made here and now."""
        deps = self.load.cluster.deps
        id_ = duplicate.begin(deps, self._version(), name=f"for {purpose} {new_id()}")
        copy = duplicate.copy_of(control.follow(deps, STEPS, self.load.user_id, id_))
        self._copies.setdefault(purpose, []).append(copy)
        return copy

    def _duplicate(self) -> UUID:
        return duplicate.begin(self.load.cluster.deps, self._version(), name=f"copy {new_id()}")

    def _reapply(self) -> UUID:
        processor = self.load.processor
        # Not over the copies: from some of them all is taken again.
        scope = Scope(
            post_processor_id=processor.id,
            dataset_id=processor.dataset_id,
            split_id=self.load.split.id,
        )
        return reapply.begin(self.load.cluster.deps, processor, scope, self.load.user_id)

    def _review(self) -> UUID:
        copy = self._copy(reviews.KIND)
        return reviews.begin(
            self.load.cluster.deps, self.load.dataset.id, self.load.user_id,
            Suggestions(version_id=copy), "accept",
        )  # fmt: skip

    def _undo(self) -> UUID:
        copy = self._copy(undo.KIND)
        return undo.begin(
            self.load.cluster.deps, self.load.dataset.id, self.load.user_id, copy,
            self.load.processor.id,
        )  # fmt: skip

    def _export(self) -> UUID:
        version = self.load.split.version_id
        return export.begin(self.load.cluster.deps, self.load.user_id, version).operation_id

    def _delete(self) -> UUID:
        copy = self._copy(delete.KIND)
        return delete.version(self.load.cluster.deps, self._version(copy)).id

    def _target(self, kind: str) -> datasets.Dataset:
        with self.load.cluster.db.begin() as tx:
            made = datasets.create_dataset(tx, self.load.user_id, f"{kind} {new_id()}")
        self._targets.setdefault(kind, []).append(made)
        return made

    def _import(self) -> UUID:
        made = self._target(import_items.KIND)
        with self._lines(lambda n: {"text": f"text {n}", "splits": ["train"]}) as path:
            taken = bulk.take_lines(
                self.load.cluster.deps, self.load.user_id, made.version_id, path
            )
        return taken.operation_id

    def _infer(self) -> UUID:
        made = self._target(inferences.KIND)
        with self.load.cluster.db.begin() as tx:
            split = datasets.get_split(tx, self.load.user_id, f"{made.name}/train")
        said = [{"prediction": "a label", "confidence": 0.5}]
        with self._lines(
            lambda n: {"id": f"inference {n}", "name": f"text {n}", "inference_items": said}
        ) as path:
            return inferences.add_file(self.load.cluster.deps, split, path).operation_id

    @contextmanager
    def _lines(self, line: Callable[[int], dict[str, Any]]) -> Iterator[Path]:
        path = self.load.cluster.folder / "lines.jsonl"
        path.write_text("".join(json.dumps(line(n)) + "\n" for n in range(LINES)))
        yield path
        path.unlink()

    # What must be there.

    def _judges(self) -> Iterator[list[str]]:
        yield self._differing_copies()
        yield self._left("review", "suggested ones left", "AND review = 'suggested'")
        yield self._left("undo", "annotations left", "AND source = 'model'")
        yield self._left("delete", "annotations left", "")
        yield self._missing(import_items.KIND, "item_splits", "items")
        yield self._missing(inferences.KIND, "annotations", "annotations")
        yield self._archives()

    def _differing_copies(self) -> list[str]:
        rows = self.load.cluster.sql(
            "SELECT v.name, "
            "(SELECT count(*) FROM item_splits s WHERE s.version_id = v.id) AS items, "
            "(SELECT count(*) FROM annotations a WHERE a.version_id = v.id "
            "AND a.deleted_at IS NULL) AS marks "
            "FROM dataset_versions v WHERE v.name LIKE 'copy %' AND v.deleted_at IS NULL"
        )
        return [f"{r.name} differs" for r in rows if (r.items, r.marks) != (ITEMS, ITEMS)]

    def _left(self, purpose: str, what: str, where: str) -> list[str]:
        left = self.load.cluster.one(
            "SELECT count(*) FROM annotations WHERE version_id = ANY(:ids) "  # noqa: S608  our words
            f"AND deleted_at IS NULL {where}",
            ids=self._copies.get(purpose, []),
        )
        return [f"{purpose}: {left} {what}"] if left else []

    def _missing(self, kind: str, table: str, what: str) -> list[str]:
        found = []
        for each in self._targets.get(kind, []):
            n = self.load.cluster.one(
                f"SELECT count(*) FROM {table} WHERE version_id = :id",  # noqa: S608  likewise
                id=each.version_id,
            )
            if n != LINES:
                found.append(f"{kind}: {n} {what} of {LINES}")
        return found

    def _archives(self) -> list[str]:
        found = []
        for id_ in self.begun.get(export.KIND, []):
            path = export.archive(self.load.cluster.deps, _read(self.load, id_))
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if archive.testzip() is not None or len(names) < ITEMS:
                    found.append(f"export: {len(names)} files for {ITEMS} items")
        return found


def _read(load: Load, id_: UUID) -> operations.Operation:
    """An operation as it is now."""
    with load.cluster.db.begin() as tx:
        found = operations.find_operation(tx, load.user_id, id_)
    assert found is not None, "it was begun here"  # noqa: S101  said for the type checker
    return found
