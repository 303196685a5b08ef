"""What a client asks of the items of a list, in the words of the query."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Query
from pydantic import BeforeValidator, Field

from ppworker.api.paging import QueryFlag, QueryText, absent
from ppworker.api.paths import identity, missing
from ppworker.domain.text import clean_text
from ppworker.errors import Malformed
from ppworker.store import labels
from ppworker.store.datasets import Split
from ppworker.store.db import Tx
from ppworker.store.item_lists import Filters, JobState, Review, Scope, Source
from ppworker.store.versions import Version

_MOST_TEXT = 200

Score = Annotated[
    Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None, BeforeValidator(absent)
]


def _wanted(
    *,
    split_id: Annotated[
        QueryText, Query(alias="splitId", description="Only items of this split.")
    ] = None,
    label_id: Annotated[
        QueryText, Query(alias="labelId", description="Only items that carry this label.")
    ] = None,
    only_unlabelled: Annotated[
        QueryFlag, Query(alias="onlyUnlabelled", description="Only items without annotations.")
    ] = None,
    job_status: Annotated[
        JobState | None,
        BeforeValidator(absent),
        Query(alias="jobStatus", description="Only items with a job in this state."),
    ] = None,
    text: Annotated[
        Annotated[str, Field(max_length=_MOST_TEXT)] | None,
        BeforeValidator(absent),
        Query(description="Only items with this in their text or name, in whatever case."),
    ] = None,
    min_score: Annotated[
        Score, Query(alias="minScore", description="Only items with an annotation as sure as this.")
    ] = None,
    max_score: Annotated[
        Score, Query(alias="maxScore", description="Only items with one as unsure as this.")
    ] = None,
    source: Annotated[
        Source | None,
        BeforeValidator(absent),
        Query(description="Only items with an annotation that came from there."),
    ] = None,
    review: Annotated[
        Review | None,
        BeforeValidator(absent),
        Query(description="Only items with an annotation in this state of review."),
    ] = None,
) -> Filters:
    if min_score is not None and max_score is not None and min_score > max_score:
        raise Malformed(f"is above maxScore ({max_score:g})", field="minScore")
    return Filters(
        split_id=None if split_id is None else identity(split_id, "splitId"),
        label_id=None if label_id is None else identity(label_id, "labelId"),
        only_unlabelled=bool(only_unlabelled),
        job_status=job_status,
        # As texts are cleaned when they come in.
        text=None if text is None else clean_text(text)[0] or None,
        min_score=min_score,
        max_score=max_score,
        source=source,
        review=review,
    )


WantedItems = Annotated[Filters, Depends(_wanted)]


def scope_of(tx: Tx, version: Version, there: Sequence[Split], filters: Filters) -> Scope:
    """Where the items are looked for, of a version with the splits that are there.

    Raises:
        NotFound: a filter names what is not there, which would look like an empty dataset.
    """
    splits = [split.id for split in there]
    if filters.split_id is not None and filters.split_id not in splits:
        raise missing("splitId", filters.split_id)
    label_id = filters.label_id
    if label_id is not None and labels.find_label(tx, version.id, label_id) is None:
        raise missing("labelId", filters.label_id)
    return Scope(version_id=version.id, dataset_id=version.dataset_id, split_ids=splits)
