"""Rules of long work: it is begun, goes on in chunks, and may be overtaken between two of them."""

import itertools
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any
from unittest import mock
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from ppworker.errors import Conflict
from ppworker.pipeline.control import operations, reapply
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.control.operations import Step, Write
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.edits import reviews, undo
from ppworker.pipeline.inferences import inferences
from ppworker.pipeline.transfer import delete, duplicate
from ppworker.store import results
from ppworker.store.datasets import Split
from ppworker.store.operations import Operation
from ppworker.store.suggestions import Suggestions
from stateful.base import LABELS, TEXTS, WHICH, Base
from stateful.snapshot import Row

KINDS = ("reapply", "reapply", "undo", "review", "duplicate")
_MOST_VERSIONS = 3


class OperationRules(Base):
    """Applied inferences, reapplies, undos, reviews, copies and deletions, chunk by chunk."""

    @rule(
        which=WHICH,
        about=st.one_of(st.none(), WHICH),
        labels=st.lists(st.sampled_from(LABELS), max_size=2),
        place=st.sampled_from(["", "0 2"]),
        text=st.sampled_from(TEXTS),
        keep=st.booleans(),
        at_once=st.booleans(),
    )
    def add_inferences(
        self, which: int, about: int | None, labels: list[str], place: str, text: str, *,
        keep: bool, at_once: bool,
    ) -> None:  # fmt: skip
        """Predictions made elsewhere, of a new item or of one that joins the split by them."""
        split = self.pick_split(which)
        if split is None:
            return
        line: dict[str, Any] = {
            "name": text,
            "inference_items": [
                {"prediction": label, "confidence": 0.8, "coordinates": place} for label in labels
            ],
        }
        if about is not None and self.now.items:
            line["dataset_item_id"] = str(self.pick(list(self.now.items), about))
        self._add(split, line, keep=keep, at_once=at_once)

    def _add(
        self, split: Split, line: Mapping[str, Any], *, keep: bool = True, at_once: bool = True
    ) -> None:
        """Two equal inferences are one."""
        with self.step("operation"):
            added = inferences.add(self.deps, split, [line, line], keep_annotations=keep)
        if at_once:
            self._run(added.operation_id)

    @rule(which=WHICH, to=WHICH)
    def move_item(self, which: int, to: int) -> None:
        """Into another split of its version, then out of the one it was in."""
        member = self.pick_member(which)
        if member is None:
            return
        item, split = member
        others = [
            id_
            for id_, row in self.now.splits.items()
            if row.version_id == split.version_id and id_ != split.id
        ]
        if not others:
            return
        target = self.split(self.pick(others, to))
        line = {"name": "x", "dataset_item_id": str(item.id)}
        self._add(target, line, keep=False)
        with self.step("person"):
            delete.item(self.deps, split, item.id)
        assert item.id in self.now.members_of(target.id)
        assert item.id not in self.now.members_of(split.id)

    @rule(what=st.sampled_from(KINDS), which=WHICH, other=WHICH, at_once=st.booleans())
    def begin_operation(self, what: str, which: int, other: int, *, at_once: bool) -> None:
        with self.step("operation"):
            id_ = getattr(self, f"_{what}")(which, other)
        if id_ is not None and at_once:
            self._run(id_)

    def _reapply(self, which: int, other: int) -> UUID | None:
        processor = self.processor(which)
        if self.now.processors[processor.id].deleted_at is not None:
            return None
        scope = results.Scope(post_processor_id=processor.id, dataset_id=self.dataset_id)
        return reapply.begin(self.deps, processor, scope, self.user, successors=other % 2 > 0)

    def _undo(self, which: int, other: int) -> UUID | None:
        version_id = self.pick(list(self.now.versions), other)
        processor_id = self.processor(which).id
        live = [
            job
            for job in self.now.jobs.values()
            if (job.version_id, job.post_processor_id) == (version_id, processor_id)
            and job.status in {"pending", "processing"}
        ]
        with suppress(Conflict):
            id_ = undo.begin(self.deps, self.dataset_id, self.user, version_id, processor_id)
            assert not live, "undone while its jobs would write again"
            return id_
        assert live
        return None

    def _review(self, which: int, other: int) -> UUID | None:
        wanted = Suggestions(version_id=self.pick(list(self.now.versions), which))
        action: Any = ("accept", "reject")[other % 2]
        return reviews.begin(self.deps, self.dataset_id, self.user, wanted, action)

    def _duplicate(self, which: int, _other: int) -> UUID | None:
        if len(self.now.versions) >= _MOST_VERSIONS:
            return None
        return duplicate.begin(self.deps, self.version(self.pick(list(self.now.versions), which)))

    @precondition(lambda self: self._waiting())
    @rule(which=WHICH, chunks=st.integers(1, 4), units=st.sampled_from([1, 2, 128]))
    def work(self, which: int, chunks: int, units: int) -> None:
        """Some chunks of an operation, then it is given back."""
        done = itertools.count()
        with mock.patch("ppworker.store.operations.FIRST_CHUNK", units):
            self._run(self.pick(self._waiting(), which).id, until=lambda: next(done) > chunks)

    @precondition(lambda self: self._waiting())
    @rule(which=WHICH, units=st.sampled_from([1, 128]), ends=st.booleans())
    def overtaken(self, which: int, units: int, *, ends: bool) -> None:
        """A chunk is prepared, then the lease is lost to another worker: it must not be written."""
        row = self.pick(self._waiting(), which)
        written: list[bool] = []

        def late(deps: Deps, operation: Operation) -> Write:
            write = STEPS[row.kind](deps, operation)
            self.sql(
                "UPDATE operations SET lease_expires_at = clock_timestamp() - interval '1 s' "
                "WHERE id = :id AND status = 'processing'",
                id=row.id,
            )
            done = itertools.count()
            operations.run(
                self.workers[1], STEPS, operation_id=row.id,
                until=lambda: not ends and next(done) > 1,
            )  # fmt: skip

            def refused(tx: Any) -> Any:
                written.append(True)
                return write(tx)

            return refused

        with mock.patch("ppworker.store.operations.FIRST_CHUNK", units):
            self._run(row.id, steps={**STEPS, row.kind: late})
        assert not written, "a chunk was written under a lease that was lost"

    @precondition(lambda self: any(o.status == "failed" for o in self.now.operations.values()))
    @rule(which=WHICH)
    def retry_operation(self, which: int) -> None:
        failed = [o for o in self.now.operations.values() if o.status == "failed"]
        with self.step("operation"):
            operations.retry(self.deps, self.user, self.pick(failed, which).id)

    def _waiting(self) -> list[Row]:
        return [row for row in self.now.operations.values() if row.status == "pending"]

    def _run(
        self, id_: UUID, *, steps: Mapping[str, Step] = STEPS, until: Any = lambda: False
    ) -> None:
        """Run an operation; a review is what a person says of suggestions, all others machines."""
        self.sql("UPDATE operations SET run_at = now() WHERE status = 'pending'")
        kind = self.look().operations[id_].kind
        actor: Any = "reviewer" if kind == reviews.KIND else "operation"
        with self.step(actor):
            operations.run(replace(self.deps), steps, operation_id=id_, until=until)
