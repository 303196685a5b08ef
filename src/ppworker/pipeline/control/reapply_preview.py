"""Tells what a reapply would do, without writing anything or locking anybody out."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from uuid import UUID

from ppworker.domain.drop import add_counts
from ppworker.domain.labels import normalise_label
from ppworker.domain.post_processor import PostProcessor
from ppworker.pipeline.control import reapply
from ppworker.pipeline.control.kept_answers import cursor_of, label_ids, prepare
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import outputs
from ppworker.pipeline.runs.label_cache import LabelCache
from ppworker.store import annotations, items, labels, results
from ppworker.store.db import Database
from ppworker.store.ids import new_id
from ppworker.store.results import Scope

_TOGETHER = 500
"""Items looked at together."""


def preview(deps: Deps, scope: Scope, user_id: UUID) -> Iterator[tuple[int, Mapping[str, int]]]:
    """What a reapply would do now: items looked at and counts so far, chunk by chunk.

    A busy system may have moved on when it ends.

    Raises:
        NotFound: the post-processor was deleted.
    """
    names = _PretendedNames(deps.db)
    counts: Mapping[str, int] = {}
    seen = cursor = 0
    while True:
        prepared = prepare(deps, names, scope, user_id, cursor=cursor, limit=_TOGETHER)
        pairs = [each.pair for each in prepared.answers]
        with deps.db.look() as tx:
            states = results.read_states(tx, scope.post_processor_id, pairs)
            read = outputs.Read(
                labels=label_ids(prepared.answers),
                existing=annotations.read_existing(tx, pairs),
                splits=items.read_splits(tx, pairs),
            )
        decided = reapply.decide(prepared, prepared.answers, states, read)
        counts = add_counts(counts, decided.counts)
        seen += len(prepared.walked)
        yield seen, counts
        if prepared.is_last:
            return
        cursor = cursor_of(prepared.walked[-1])


class _PretendedNames:
    """Labels as they would be: those that would be created have ids of this preview alone."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._cache = LabelCache(db)
        self._pretended: dict[UUID, dict[str, UUID]] = {}

    def get(
        self, version_ids: Collection[UUID], *, fresh: bool = False
    ) -> dict[UUID, Mapping[str, UUID]]:
        """As ``answers.Names.get``."""
        found = self._cache.get(version_ids, fresh=fresh)
        return {id_: {**self._pretended.get(id_, {}), **names} for id_, names in found.items()}

    def create(
        self, processor: PostProcessor, version_id: UUID, user_id: UUID, names: Sequence[str]
    ) -> Mapping[str, UUID]:
        """As ``answers.Names.create``, by the rule of ``labels.ensure_labels``."""
        del user_id
        with self._db.look() as tx:
            made = labels.count_created(tx, version_id, processor.id)
        pretended = self._pretended.setdefault(version_id, {})
        known = {
            normalise_label(name): id_ for name, id_ in self.get([version_id])[version_id].items()
        }
        ids: dict[str, UUID] = {}
        for name in names:
            form = normalise_label(name)
            if form not in known:
                if made + len(pretended) >= processor.max_new_labels:
                    continue
                known[form] = pretended[name] = new_id()
            ids[name] = known[form]
        return ids
