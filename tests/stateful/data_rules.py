"""Rules of data: items, files, texts, annotations and what people say of them."""

import io
from contextlib import suppress
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from PIL import Image

from ppworker.domain.edit import Wanted
from ppworker.errors import Conflict, Invalid
from ppworker.pipeline.edits import annotations, items, reviews
from ppworker.pipeline.edits.annotations import Changed
from ppworker.pipeline.transfer import delete
from ppworker.pipeline.uploads import ingest, item_files
from stateful.base import TEXTS, WHICH, Base
from stateful.snapshot import Row


def _picture() -> bytes:
    data = io.BytesIO()
    Image.new("L", (4, 3)).save(data, "PNG")
    return data.getvalue()


FILES = {"a.png": _picture(), "b.txt": b"text of a file", "c.bin": b"\x01\x02\x03\x04"}
VERDICTS = ("accept", "reject", "erase", "relabel")
_MOST_ITEMS = 6
FILE = st.sampled_from(sorted(FILES))


class DataRules(Base):
    """What people do to a dataset, all of it through the functions that its doors call."""

    @precondition(lambda self: len(self.now.items) < _MOST_ITEMS)
    @rule(
        which=WHICH,
        contents=st.lists(st.sampled_from([*TEXTS, *FILES]), min_size=1, max_size=2),
        priority=st.integers(0, 1),
    )
    def upload(self, which: int, contents: list[str], priority: int) -> None:
        """Items arrive with a job for each post-processor that can read them, and no other."""
        split = self.pick_split(which)
        if split is None:
            return
        uploads = [self._upload(content) for content in contents]
        with self.step("person"):
            taken = ingest.take_upload(self.deps, split, uploads, priority=priority)
        for item_id, content in zip(taken.item_ids, contents, strict=True):
            jobs = [job for job in self.now.jobs.values() if job.item_id == item_id]
            assert len(jobs) == self._wanted_jobs(has_text=not content.endswith((".png", ".bin")))
            assert all(job.version_id == split.version_id for job in jobs)

    def _upload(self, content: str) -> ingest.Upload:
        self.uploads += 1
        if content in FILES:
            path = self.folder / content
            path.write_bytes(FILES[content])
            return ingest.Upload(name=f"u{self.uploads}-{content}", path=path)
        return ingest.Upload(name=f"u{self.uploads}", text=content)

    def _wanted_jobs(self, *, has_text: bool) -> int:
        names = {
            row.name for row in self.now.processors.values() if row.enabled and not row.deleted_at
        }
        if not has_text and "first" not in names:
            names -= {"second"}  # nobody will write the text that it reads
        return len(names)

    @rule(
        which=WHICH, what=st.sampled_from(["text", "file", "delete"]),
        text=st.sampled_from(["", "edited", *TEXTS]), name=FILE,
    )  # fmt: skip
    def change_item(self, which: int, what: str, text: str, name: str) -> None:
        """A person gives an item another text or file, or takes it out of a split."""
        member = self.pick_member(which)
        if member is None:
            return
        item, split = member
        if what == "text":
            self._edit_text(item.id, split.version_id, text)
        elif what == "file":
            self._put_file(item.id, split.version_id, name)
        else:
            self._delete_item(item.id, split.id)

    def _put_file(self, item_id: UUID, version_id: UUID, name: str) -> None:
        """Another file: what runs must not leave its answer about the old one."""
        own = {job.id for job in self.now.jobs.values() if job.item_id == item_id}
        with (
            self.step("person", may_end=own),
            self.deps.blobs.receive(io.BytesIO(FILES[name]), limit=10_000) as path,
        ):
            item_files.put_file(self.deps, version_id, item_id, path, name=name)
        for job in self.now.jobs.values():
            if (job.item_id, job.version_id) == (item_id, version_id):
                enabled = self.now.processors[job.post_processor_id].enabled
                running = job.status == "processing" and enabled
                assert not running or job.rerun_requested, ("it runs on the old file", job)

    def _edit_text(self, item_id: UUID, version_id: UUID, text: str) -> None:
        with self.step("person"):
            items.change(self.deps, version_id, item_id, items.Changed(text=text))
        assert self.now.items[item_id].text == (text or None)

    @rule(which=WHICH, label=WHICH, where=st.sampled_from(["", "", "0 2"]))
    def annotate(self, which: int, label: int, where: str) -> None:
        """A person says something; where one label is taken, instead of what was said."""
        member = self.pick_member(which)
        labels = [] if member is None else self.labels_of(member[1].version_id)
        if member is None or not labels:
            return
        item, split = member
        new = annotations.New(label_id=self.pick(labels, label).id, where=Wanted(coordinates=where))
        with self.step("person"), suppress(Invalid):  # the text may be shorter
            made = annotations.annotate(self.deps, split.version_id, self.user, item.id, new)
            assert made.row.source == "human"

    def labels_of(self, version_id: UUID) -> list[Row]:
        """Labels of a version."""
        return [row for row in self.now.labels.values() if row.version_id == version_id]

    def spoken(self) -> list[Row]:
        """Annotations that people see, those of models first."""
        seen = self.seen()
        rows = [
            row
            for row in self.now.annotations.values()
            if row.deleted_at is None
            and row.label_id in self.now.labels
            and (row.item_id, row.version_id) in seen
        ]
        return sorted(rows, key=lambda row: row.source == "human")

    def _judge(self, row: Row, verdict: str, label: int) -> None:
        """A person says something of what anybody said."""
        with self.step("person"):
            if verdict == "relabel":
                wanted = Changed(label_id=self.pick(self.labels_of(row.version_id), label).id)
                annotations.change(self.deps, row.version_id, row.id, wanted)
            elif verdict == "erase":
                annotations.delete(self.deps, row.version_id, row.id)
            else:
                action: Any = verdict
                with suppress(Conflict):
                    reviews.review_one(self.deps, row.version_id, row.id, action)
        left = self.now.annotations.get(row.id)
        if verdict == "erase":
            assert (left is None) == (row.source == "human"), "a prediction leaves a tombstone"
        elif row.review == "suggested":
            assert left is not None
            assert left.review != "suggested" or verdict == "relabel", "nobody heard the person"

    def _delete_item(self, item_id: UUID, split_id: UUID) -> None:
        """Out of one split; out of the last one, with all it was there."""
        split = self.split(split_id)
        with self.step("person"):
            delete.item(self.deps, split, item_id)
        left = (item_id, split.version_id) in self.now.pairs
        for rows in (self.now.jobs, self.now.annotations):
            assert left or not any(
                (row.item_id, row.version_id) == (item_id, split.version_id)
                for row in rows.values()
            ), "something is left of an item that is gone"
