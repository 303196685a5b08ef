"""What a cluster works on: a dataset, post-processors of the kit's runner, and many texts."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from ppworker.chaos.cluster import Cluster
from ppworker.chaos.runner import PATH
from ppworker.domain.post_processor import PostProcessor
from ppworker.pipeline.uploads import ingest
from ppworker.store import datasets, post_processors
from ppworker.store.ids import new_id

USER = "local"
"""The user that the command line acts as, so that its commands see what the kit made."""
_CHUNK = 1000
_ATTEMPTS = 25
"""Attempts that a job may have: here it is proven how many it needs."""


@dataclass(frozen=True, slots=True)
class Load:
    """A dataset with post-processors, to be filled."""

    cluster: Cluster
    user_id: UUID
    dataset: datasets.Dataset
    split: datasets.Split
    processors: list[PostProcessor]

    @property
    def processor(self) -> PostProcessor:
        """The first one."""
        return self.processors[0]

    def add(self, items: int, *, priority: int = 1) -> list[UUID]:
        """Upload so many texts, a thousand at a time; ids of the items."""
        added: list[UUID] = []
        for first in range(0, items, _CHUNK):
            uploads = [
                ingest.Upload(name=f"{i}.txt", text=f"item {i}, a sentence that somebody wrote")
                for i in range(first, min(first + _CHUNK, items))
            ]
            taken = ingest.take_upload(self.cluster.deps, self.split, uploads, priority=priority)
            added += taken.item_ids
        return added


def make(
    cluster: Cluster,
    *,
    name: str = "chaos",
    processors: int = 1,
    batch_size: int = 64,
    runner: str = PATH,
    **config: Any,
) -> Load:
    """A dataset with one or more post-processors.

    Args:
        cluster: where.
        name: of the dataset.
        processors: how many, each of an order of its own.
        batch_size: most jobs of one batch.
        runner: path of one of ``ppworker.chaos.runner``.
        config: its settings, see ``ChaosRunner``.
    """
    with cluster.db.begin() as tx:
        user_id = datasets.ensure_user(tx, USER)
        dataset = datasets.create_dataset(tx, user_id, name)
        split = datasets.get_split(tx, user_id, f"{name}/train")
        made = [
            PostProcessor(
                id=new_id(),
                dataset_id=dataset.id,
                name=f"{name}-{number}",
                model_type="classification",
                runner=runner,
                runner_config=config,
                reads="text",
                order=number,
                batch_size=batch_size,
                max_attempts=_ATTEMPTS,
            )
            for number in range(processors)
        ]
        for processor in made:
            post_processors.create_post_processor(tx, user_id, processor)
    return Load(cluster, user_id, dataset, split, made)
