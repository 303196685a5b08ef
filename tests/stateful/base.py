"""What every rule stands on: the database, the steps, and short words to choose rows by number."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from uuid import UUID, uuid4

import sqlalchemy as sa
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize

from ppworker.domain.post_processor import PostProcessor
from ppworker.pipeline.control import operations
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import execute
from ppworker.pipeline.runs.label_cache import LabelCache
from ppworker.pipeline.setup import catalogue
from ppworker.pipeline.transfer import duplicate
from ppworker.pipeline.uploads import ingest
from ppworker.store import datasets, post_processors, versions
from ppworker.store.datasets import Split
from ppworker.store.ids import new_id
from ppworker.store.tables import metadata
from ppworker.store.versions import Version
from stateful import laws
from stateful.snapshot import Eyes, Row, Snapshot

T = TypeVar("T")

WHICH = st.integers(0, 99)
"""Chooses a row by its place; the remainder is taken, so that it shrinks to the first."""
TEXTS = ("ab cd", "x y z", "longer words here")
"""Each with room for the spans that models say."""
LABELS = ("cat", "dog", "cow")

_PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    # Writes the text that the second one reads.
    "first": {"model_type": "llm", "output_target": "both", "order": 0, "max_attempts": 2},
    "second": {"model_type": "ner", "reads": "text", "order": 1, "max_attempts": 2},
    "beside": {"model_type": "classification", "order": 1},
}
_EMPTY = sa.text(f"TRUNCATE {', '.join(table.name for table in metadata.sorted_tables)}")


@dataclass(frozen=True, slots=True)
class Taken:
    """A batch that somebody claimed once; its leases may be anybody's by now."""

    processor: PostProcessor
    batch: execute.Batch

    @property
    def tokens(self) -> dict[UUID, int]:
        """Jobs with the tokens they were claimed with."""
        return {job.id: job.lease_token for job in self.batch.jobs}


class Base(RuleBasedStateMachine):
    """A dataset that people, workers and operations work on, step by step.

    Args:
        deps: on a database that is the machine's alone; it is emptied first.
        eyes: look at that database.
    """

    def __init__(self, deps: Deps, eyes: Eyes) -> None:
        super().__init__()
        self.deps = deps
        self.folder = deps.settings.data_dir
        self.folder.mkdir(parents=True, exist_ok=True)
        self.eyes = eyes
        self.workers = (deps, replace(deps, worker_id=uuid4()))
        self.labels = LabelCache(deps.db)
        self.taken: list[Taken] = []
        self.now = Snapshot()
        self.user = self.dataset_id = UUID(int=0)
        self.multi_label = True
        self.uploads = 0

    @initialize(
        multi_label=st.booleans(),
        stops=st.booleans(),
        cap=st.sampled_from([None, 1]),
        texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=2),
    )
    def begin(self, *, multi_label: bool, stops: bool, cap: int | None, texts: list[str]) -> None:
        """A dataset with three post-processors, some items, and a copy of its version."""
        with self.deps.db.begin() as tx:
            tx.execute(_EMPTY)
            self.user = datasets.ensure_user(tx, "user")
            made = datasets.create_dataset(tx, self.user, "dataset", multi_label=multi_label)
            self.dataset_id = made.id
            self.multi_label = multi_label
            for name, options in _PROCESSORS.items():
                values: dict[str, Any] = {"name": name, "runner": "scripted", **options}
                if name == "first" and stops:
                    values["on_failure"] = "stop"
                if name == "beside":
                    values["concurrency_cap"] = cap
                processor = PostProcessor(id=new_id(), dataset_id=made.id, **values)
                post_processors.create_post_processor(tx, self.user, processor)
            (split, *_) = datasets.list_splits(tx, self.user, made.version_id)
        for label in LABELS[:2]:
            catalogue.create_label(self.deps, made.version_id, self.user, label)
        uploads = [ingest.Upload(name=f"i{n}", text=text) for n, text in enumerate(texts)]
        ingest.take_upload(self.deps, split, uploads)
        id_ = duplicate.begin(self.deps, self.version(made.version_id))
        operations.run(self.deps, STEPS, operation_id=id_)
        self.now = self.look()

    @contextmanager
    def step(
        self, actor: laws.Actor, may_end: set[UUID] | None = None, *, prunes: bool = False
    ) -> Iterator[None]:
        """Whatever is done within is held against every law and every invariant.

        Args:
            actor: who does it.
            may_end: processing jobs that it may take out of that state.
            prunes: whether it removes old jobs that are over.
        """
        before = self.now
        yield
        self.now = self.look()
        laws.check(before, self.now, actor, may_end=may_end or set(), prunes=prunes)

    def look(self) -> Snapshot:
        """What is stored now; every invariant holds."""
        found, broken = self.eyes.look()
        assert not broken, broken
        return found

    def sql(self, statement: str, **values: Any) -> None:
        """Do to rows what time or a crash would do."""
        with self.deps.db.begin() as tx:
            tx.execute(sa.text(statement), values)

    @staticmethod
    def pick(rows: Sequence[T], which: int) -> T:
        """A row by its place; there must be one."""
        found = rows[which % len(rows)]
        named = [getattr(found, name, None) for name in ("name", "status", "id")]
        note(f"# {' '.join(str(each) for each in named if each) or found}"[:120])
        return found

    def pick_job(self, which: int, *statuses: str) -> Row | None:
        """A job in one of the states, if there is one."""
        rows = [job for job in self.now.jobs.values() if job.status in statuses]
        return self.pick(rows, which) if rows else None

    def pick_member(self, which: int) -> tuple[Row, Split] | None:
        """An item in a split that people see."""
        rows = sorted((m[0], m[2]) for m in self.now.members if m[2] in self.now.splits)
        if not rows:
            return None
        item_id, split_id = self.pick(rows, which)
        return self.now.items[item_id], self.split(split_id)

    def seen(self) -> set[tuple[UUID, UUID]]:
        """Each item with each version through which people see it."""
        return {member[:2] for member in self.now.members if member[2] in self.now.splits}

    def pick_split(self, which: int) -> Split | None:
        """A split that people see."""
        return self.split(self.pick(list(self.now.splits), which)) if self.now.splits else None

    def processor(self, which: int) -> PostProcessor:
        """A post-processor as it is stored now, deleted or not."""
        row = self.pick(list(self.now.processors.values()), which)
        with self.deps.db.look() as tx:
            found = post_processors.find_post_processor(tx, row.id)
        return found or PostProcessor(
            id=row.id, dataset_id=row.dataset_id, name=row.name, model_type=row.model_type,
            runner=row.runner, reads=row.reads, order=row.order,
        )  # fmt: skip

    def split(self, id_: UUID) -> Split:
        """A split by its id."""
        with self.deps.db.look() as tx:
            found = datasets.find_split(tx, self.now.splits[id_].version_id, id_)
        assert found is not None
        return found

    def version(self, id_: UUID) -> Version:
        """A version by its id."""
        with self.deps.db.look() as tx:
            found = versions.find_version(tx, self.user, self.dataset_id, id_)
        assert found is not None
        return found

    def dataset(self) -> datasets.Dataset:
        """The dataset."""
        with self.deps.db.look() as tx:
            return datasets.get_dataset(tx, self.user, str(self.dataset_id))
