"""Rules of what changes now and then: splits, labels, versions, post-processors, sweeps."""

from contextlib import suppress
from dataclasses import replace
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import rule

from ppworker.errors import Conflict
from ppworker.pipeline.control import operate
from ppworker.pipeline.runs import refresh, rescue, retention
from ppworker.pipeline.setup import catalogue, processor_changes
from ppworker.pipeline.transfer import delete
from ppworker.store import labels as label_store
from stateful.base import LABELS, WHICH, Base

CHANGES = (
    "upkeep", "prune", "enable", "pause", "change_threshold", "create_split", "create_label", "backfill",
    "mark_label", "mark_split", "mark_version", "delete_processor",
)  # fmt: skip


class SettingRules(Base):
    """One rule for all of them: what they change is needed for the other rules to be about."""

    @rule(change=st.sampled_from(CHANGES), which=WHICH, other=WHICH)
    def rearrange(self, change: str, which: int, other: int) -> None:
        getattr(self, f"_{change}")(which, other)

    def _upkeep(self, _which: int, _other: int) -> None:
        """Sweeps find nothing to mend, and fold what they may."""
        with self.step("operation"):
            refresh.fold(self.deps)
            assert rescue.Repair(self.deps).sweep() == 0
            assert processor_changes.end_jobs_of_deleted(self.deps) == 0
            for split_id in self.now.splits:
                assert refresh.rebuild(self.deps, split_id) == 0

    def _prune(self, _which: int, _other: int) -> None:
        """Jobs that are over have become old; what they wrote stays."""
        update = {"keep_completed_s": 1e-6, "keep_failed_s": 1e-6}
        short = self.deps.settings.model_copy(update=update)
        before = self.now
        with self.step("operation", prunes=True):
            list(retention.removals(replace(self.deps, settings=short)))
        assert all(j.status in {"pending", "processing"} for j in self.now.jobs.values())
        assert (self.now.annotations, self.now.results) == (before.annotations, before.results)

    def _enable(self, which: int, _other: int) -> None:
        """Disabled, its pending jobs wait and keep nobody waiting; then it works again."""
        row = self.now.processors[self.processor(which).id]
        if row.deleted_at is None:
            with self.step("person"):
                changes = {"enabled": not row.enabled}
                processor_changes.change(self.deps, self.user, self.dataset(), row.id, changes)

    def _pause(self, which: int, _other: int) -> None:
        processor = self.processor(which)
        is_paused = self.now.processors[processor.id].paused_by_operator
        with self.step("person"):
            operate.set_paused(self.deps, processor, paused=not is_paused)

    def _change_threshold(self, which: int, other: int) -> None:
        """Settings of tomorrow, for whatever ends or is applied again from now on."""
        self._set_threshold(self.processor(which).id, (0.0, 0.5)[other % 2])

    def _set_threshold(self, id_: UUID, threshold: float) -> None:
        self.sql(
            "UPDATE post_processors SET confidence_threshold = :t WHERE id = :id",
            t=threshold,
            id=id_,
        )
        self.now = self.look()

    def _create_split(self, which: int, other: int) -> None:
        version_id = self.pick(list(self.now.versions), which)
        with self.step("person"), suppress(Conflict):
            catalogue.create_split(self.deps, version_id, self.user, ("more", "other")[other % 2])

    def _create_label(self, which: int, other: int) -> None:
        version_id = self.pick(list(self.now.versions), which)
        with self.step("person"), suppress(Conflict):
            catalogue.create_label(self.deps, version_id, self.user, self.pick(LABELS, other))

    def _backfill(self, which: int, other: int) -> None:
        """An item gets the job that it never had, once."""
        processor, split = self.processor(which), self.pick_split(other)
        row = self.now.processors[processor.id]
        if split is None or row.deleted_at is not None:
            return
        with self.step("person"):
            list(operate.backfill(self.deps, processor, [split]))
        there = {(j.item_id, j.version_id, j.post_processor_id) for j in self.now.jobs.values()}
        for item_id in self.now.members_of(split.id):
            is_read = self.now.items[item_id].text is not None or processor.reads == "any"
            is_read = is_read and self.now.items[item_id].content_sha256 is None
            key = (item_id, split.version_id, processor.id)
            assert not (is_read and row.enabled and self.now.items[item_id].text) or key in there

    def _mark_label(self, which: int, _other: int) -> None:
        """A label is gone at once; its annotations go in steps of an operation."""
        if not self.now.labels:
            return
        row = self.pick(list(self.now.labels.values()), which)
        with self.deps.db.look() as tx:
            found = label_store.find_label(tx, row.version_id, row.id)
        assert found is not None
        with self.step("person"):
            delete.label(self.deps, self.version(row.version_id), found)

    def _mark_split(self, which: int, _other: int) -> None:
        split = self.pick_split(which)
        if split is not None and len(self.now.splits) > 1:
            with self.step("person"):
                delete.split(self.deps, split)

    def _mark_version(self, which: int, _other: int) -> None:
        if len(self.now.versions) > 1:
            version_id = self.pick(list(self.now.versions), which)
            with self.step("person"):
                delete.version(self.deps, self.version(version_id))

    def _delete_processor(self, which: int, other: int) -> None:
        """Its jobs that wait go, those that run are cancelled, what it said stays."""
        processor = self.processor(which)
        if other % 3 or self.now.processors[processor.id].deleted_at is not None:
            return  # seldom: little happens without them
        own = {j.id for j in self.now.jobs.values() if j.post_processor_id == processor.id}
        with self.step("person", may_end=own):
            processor_changes.delete(self.deps, self.dataset(), processor.id)
        for job in self.now.jobs.values():
            if job.post_processor_id == processor.id:
                assert job.status in {"completed", "failed"}
