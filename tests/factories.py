"""Real rows for tests, all arguments optional; and one scripted model, the only fake there is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa

from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import RunnerError
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import execute, finish, refresh
from ppworker.pipeline.runs.label_cache import LabelCache
from ppworker.pipeline.uploads import ingest
from ppworker.runners.base import RawAnswer, RunnerInput
from ppworker.store import (
    annotations,
    datasets,
    job_operations,
    jobs,
    post_processors,
    stats,
    verify,
)
from ppworker.store.ids import new_id

Said = Mapping[str, Any] | RunnerError


@dataclass
class Model:
    """A scripted model: answers what ``say`` returns for an input, after ``during`` was called."""

    say: Callable[[RunnerInput], Said]
    during: Callable[[], object] = lambda: None
    batches: list[int] = field(default_factory=list)
    shares_process: bool = False

    def predict(
        self, inputs: Sequence[RunnerInput], *, timeout_s: float
    ) -> list[RawAnswer | RunnerError]:
        self.batches.append(len(inputs))
        self.during()
        said = [self.say(each) for each in inputs]
        return [
            each if isinstance(each, RunnerError) else RawAnswer(raw=each, model_version="m1")
            for each in said
        ]


def classes(*labels: str, score: float = 0.9) -> dict[str, Any]:
    """A raw classification answer."""
    return {"predictions": [{"label": label, "score": score} for label in labels]}


class World:
    """One user's dataset with short words for what tests do."""

    def __init__(self, deps: Deps, *, username: str = "", multi_label: bool = True) -> None:
        self.deps = deps
        self.labels = LabelCache(deps.db)
        with deps.db.begin() as tx:
            self.user = datasets.ensure_user(tx, username or f"user-{uuid4().hex[:6]}")
            self.dataset = datasets.create_dataset(
                tx, self.user, f"dataset-{uuid4().hex[:6]}", multi_label=multi_label
            )
            self.train, self.valid, self.test = datasets.list_splits(
                tx, self.user, self.dataset.version_id
            )

    def processor(self, name: str = "", **options: Any) -> PostProcessor:
        """A post-processor that reads anything and classifies."""
        values: dict[str, Any] = {
            "name": name or f"processor-{uuid4().hex[:6]}",
            "model_type": "classification",
            "runner": "scripted",
        } | options
        processor = PostProcessor(id=new_id(), dataset_id=self.dataset.id, **values)
        with self.deps.db.begin() as tx:
            post_processors.create_post_processor(tx, self.user, processor)
        return processor

    def change(self, processor: PostProcessor, **values: Any) -> PostProcessor:
        """The post-processor with other settings, in the database too."""
        with self.deps.db.begin() as tx:
            for name, value in values.items():
                tx.execute(
                    sa.text(f'UPDATE post_processors SET "{name}" = :v WHERE id = :id'),
                    {"v": value, "id": processor.id},
                )
        return replace(processor, **values)

    def add(self, *texts: str, split: datasets.Split | None = None, **options: Any) -> list[UUID]:
        """Items of the given texts."""
        uploads = [ingest.Upload(name=f"item-{i}", text=text) for i, text in enumerate(texts)]
        return ingest.take_upload(self.deps, split or self.train, uploads, **options).item_ids

    def claim(
        self, processor: PostProcessor, *, limit: int = 100, deps: Deps | None = None
    ) -> execute.Batch:
        """Claim due jobs."""
        batch = execute.claim(deps or self.deps, processor, limit=limit)
        if not batch.jobs and batch.suspects_wait:
            return execute.claim_suspects(deps or self.deps, processor, limit=limit)
        return batch

    def run(
        self,
        processor: PostProcessor,
        say: Callable[[RunnerInput], Said] | Said | None = None,
        *,
        limit: int = 100,
        during: Callable[[], object] = lambda: None,
        batch: execute.Batch | None = None,
        deps: Deps | None = None,
    ) -> finish.Report:
        """Claim a batch and carry it to its end with a scripted model."""
        answer = say if say is not None else classes("cat")
        model = Model(answer if callable(answer) else lambda _: answer, during)
        batch = batch or self.claim(processor, limit=limit)
        return execute.run(deps or self.deps, self.labels, processor, model, batch)

    def jobs(self, processor: PostProcessor | None = None, **filters: Any) -> Sequence[Any]:
        """The jobs of this user, oldest first."""
        with self.deps.db.begin() as tx:
            return job_operations.list_jobs(
                tx,
                self.user,
                post_processor_id=processor.id if processor else None,
                limit=10_000,
                **filters,
            )

    def statuses(self, processor: PostProcessor | None = None) -> list[str]:
        """Statuses of the jobs, oldest first."""
        return [job.status for job in self.jobs(processor)]

    def attempts(self, job_id: UUID) -> Sequence[Any]:
        """The history of a job."""
        with self.deps.db.begin() as tx:
            return job_operations.list_attempts(tx, job_id)

    def again(self, *item_ids: UUID, processor: PostProcessor | None = None) -> None:
        """Plan what has run on items once more, as a changed file does: as new jobs."""
        rows = self.sql(
            'SELECT DISTINCT item_id, version_id, post_processor_id, "order", max_attempts '
            "FROM post_processor_jobs WHERE item_id = ANY(:items) "
            "AND (CAST(:processor AS uuid) IS NULL OR post_processor_id = :processor)",
            items=list(item_ids),
            processor=processor.id if processor else None,
        )
        planned = [
            jobs.NewJob(
                id=new_id(),
                post_processor_id=row.post_processor_id,
                item_id=row.item_id,
                version_id=row.version_id,
                user_id=self.user,
                order=row.order,
                ready=True,
                max_attempts=row.max_attempts,
            )
            for row in rows
        ]
        with self.deps.db.begin() as tx:
            assert jobs.insert_jobs(tx, planned) == len(planned)

    def annotations(self, item_id: UUID) -> Sequence[Any]:
        """Live annotations of an item."""
        with self.deps.db.begin() as tx:
            return annotations.list_annotations(tx, item_id)

    def annotate(self, item_id: UUID, label: str, *, split: datasets.Split | None = None) -> UUID:
        """A person's class annotation, with its delta, as an API would write it."""
        return human_annotation(self, item_id, label, split or self.train)

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """Rows of a statement."""
        with self.deps.db.begin() as tx:
            result = tx.execute(sa.text(statement), values)
            return list(result.all()) if result.returns_rows else []

    def expire(self, processor: PostProcessor | None = None) -> None:
        """Let every lease run out now."""
        self.sql(
            "UPDATE post_processor_jobs SET lease_expires_at = clock_timestamp() - interval '1 s' "
            "WHERE status = 'processing'"
        )

    def make_due(self) -> None:
        """Let every waiting job be due now; those that somebody holds are left for the next call.

        Pauses that models asked for or brought about are over too.
        """
        self.sql("DELETE FROM post_processor_circuits")
        self.sql(
            "UPDATE post_processor_jobs SET run_at = now() WHERE id IN (SELECT id FROM "
            "post_processor_jobs WHERE status = 'pending' ORDER BY id FOR UPDATE SKIP LOCKED)"
        )

    def check(self) -> None:
        """Every invariant holds, and every split's stats equal a recount."""
        with self.deps.db.begin() as tx:
            broken = verify.run(tx)
            assert broken == [], broken
            splits = stats.list_split_ids(tx)
        assert refresh.verify(self.deps, splits) == []


def human_annotation(world: World, item_id: UUID, label: str, split: datasets.Split) -> UUID:
    """Write a person's annotation in one transaction with its delta, item locked first."""
    from ppworker.domain import replace as replace_rule
    from ppworker.domain import stats as stat_rule
    from ppworker.store import items
    from ppworker.store import labels as label_store

    with world.deps.db.begin() as tx:
        ids, _ = label_store.ensure_labels(
            tx, split.version_id, world.user, [label], post_processor_id=None, cap=None
        )
    annotation_id = new_id()
    with world.deps.db.begin() as tx:
        items.lock_items(tx, [item_id])
        pair = (item_id, split.version_id)
        before = annotations.read_existing(tx, [pair]).get(pair, [])
        annotations.insert_annotations(
            tx,
            [
                annotations.NewAnnotation(
                    id=annotation_id,
                    version_id=split.version_id,
                    item_id=item_id,
                    label_id=ids[label],
                    split_id=split.id,
                    user_id=world.user,
                    kind="class",
                    geometry=None,
                    coordinates="",
                    text=None,
                    page=None,
                    score=None,
                    source="human",
                    post_processor_id=None,
                    job_id=None,
                    model_version="",
                    review="accepted",
                    fingerprint=None,
                )
            ],
        )
        after = annotations.read_existing(tx, [pair])[pair]
        splits = items.read_splits(tx, [pair])[pair]
        stats.append_deltas(
            tx,
            stat_rule.deltas(
                {item_id: replace_rule.label_counts(before)},
                {item_id: replace_rule.label_counts(after)},
                {item_id: splits},
            ),
        )
    return annotation_id
