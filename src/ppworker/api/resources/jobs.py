"""Jobs of an item and of a dataset, and the retry of one that failed."""

from dataclasses import dataclass, replace
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BeforeValidator, Field

from ppworker.api.auth import KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paging import (
    HEADERS,
    PageCount,
    PageCursor,
    PageSize,
    QueryText,
    absent,
    position,
    tell,
)
from ppworker.api.paths import DatasetPath, ItemPath, VersionPath, identity, missing
from ppworker.api.resources.operations import OperationAnswer, later
from ppworker.api.wire import Answer, Asked, Base, IdOrEmpty, Text, Time
from ppworker.errors import Invalid
from ppworker.pipeline.control import operate
from ppworker.pipeline.control import retry_jobs as restarting
from ppworker.pipeline.deps import Deps
from ppworker.store import job_pages, operations
from ppworker.store.datasets import as_id
from ppworker.store.job_pages import Filters
from ppworker.store.versions import Version

router = APIRouter(route_class=KeyedRoute, tags=["jobs"], responses=responses(401, 403, 404, 503))

_UNPAGED = 10_000
"""Most jobs of one answer where no page size is asked for; the answer says when there are more."""

Status = job_pages.JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a list of jobs is asked by."""

    filters: Filters
    page_size: int | None
    page_count: int | None
    cursor: str | None
    request: Request
    response: Response


def _asked(
    request: Request,
    response: Response,
    *,
    status: Annotated[Status | None, BeforeValidator(absent), Query()] = None,
    post_processor_id: QueryText = None,
    page_size: PageSize = None,
    page_count: PageCount = None,
    cursor: PageCursor = None,
) -> _Asked:
    processor = (
        None if post_processor_id is None else identity(post_processor_id, "post_processor_id")
    )
    return _Asked(
        filters=Filters(status=status, post_processor_id=processor),
        page_size=page_size,
        page_count=page_count,
        cursor=cursor,
        request=request,
        response=response,
    )


AskedJobs = Annotated[_Asked, Depends(_asked)]


class JobAnswer(Base):
    """One post-processor's work on one item.

    Its name is that of its post-processor and its description is its status, so that clients whose
    classes know no more can tell. What it failed for, what it dropped and when it runs next are
    ours.
    """

    post_processor_id: Text
    dataset_item_id: Text
    dataset_id: Text
    status: Status
    attempts: int
    max_attempts: int
    error: str | None = None
    result: str | None = None
    """JSON text of the model's raw answer."""
    started_at: Time | None = None
    completed_at: Time | None = None
    user_id: Text = ""
    reason: str = ""
    dropped: dict[str, int] = {}
    next_attempt_at: Time | None = None


class JobDetailsAnswer(JobAnswer):
    """A job with the names around it."""

    post_processor_name: str
    item_name: str


@router.get(
    "/datasets/{dataset_id}/post-processors/jobs",
    responses={200: {"headers": HEADERS}, **responses(400)},
)
def list_dataset_jobs(
    deps: Room, dataset: DatasetPath, asked: AskedJobs, item_id: QueryText = None
) -> list[JobDetailsAnswer]:
    """Jobs of a dataset in the order in which they were made.

    All of them unless a page size is given, up to ten thousand: then the header `X-Has-More` is
    true.
    """
    wanted = None if item_id is None else identity(item_id, "item_id")
    return _listed(deps, dataset.id, replace(asked.filters, item_id=wanted), asked)


class RetryBody(Asked):
    """Which failed jobs: those that match all that is given; without any, every one."""

    post_processor_id: IdOrEmpty | None = None
    reason: Annotated[str, Field(max_length=100)] | None = None
    """Why they failed, as jobs tell."""
    successors: bool | None = None
    """Whether later post-processors of the items run again too."""


class RetriedAnswer(Answer):
    """What was restarted."""

    retried: int
    skipped: int
    """Left alone, because a newer job of the same item and post-processor took the place."""


@router.post(
    "/datasets/{dataset_id}/post-processors/jobs/retry",
    response_model=RetriedAnswer,
    responses=responses(400, 413, 422)
    | {202: {"model": OperationAnswer, "description": "They are many: the operation"}},
)
def retry_jobs(deps: Room, dataset: DatasetPath, body: RetryBody) -> Any:
    """Run failed jobs of a dataset again, with a fresh budget of attempts.

    Up to a thousand are due at once. More are restarted bit by bit, behind what comes in live:
    then the answer is 202 with the operation.
    """
    processor = None
    if body.post_processor_id:
        processor = as_id(body.post_processor_id)
        if processor is None:
            raise Invalid(f"'{body.post_processor_id}' is no id", field="post_processor_id")
    wanted = restarting.Wanted(
        dataset_id=dataset.id,
        post_processor_id=processor,
        reason=body.reason or None,
        successors=bool(body.successors),
    )
    done = restarting.begin(deps, dataset.user_id, wanted)
    if not isinstance(done, UUID):
        return RetriedAnswer(retried=done.changed, skipped=done.skipped)
    with deps.db.look() as tx:
        operation = operations.find_operation(tx, dataset.user_id, done)
    if operation is None:
        raise missing("operation", done)
    return later(operation)


@router.get(
    "/datasets/{dataset_id}/versions/{version_id}/items/{item_id}/jobs",
    responses={200: {"headers": HEADERS}, **responses(400)},
)
def list_item_jobs(
    deps: Room, version: VersionPath, item: ItemPath, asked: AskedJobs
) -> list[JobDetailsAnswer]:
    """Jobs of an item in a version, in the order in which they were made."""
    filters = replace(asked.filters, version_id=version.id, item_id=item.id)
    return _listed(deps, version.dataset_id, filters, asked)


def _listed(
    deps: Deps, dataset_id: UUID, filters: Filters, asked: _Asked
) -> list[JobDetailsAnswer]:
    size = asked.page_size or _UNPAGED
    at = position(
        f"jobs of {dataset_id}, {filters}",
        page_size=size,
        page_count=asked.page_count,
        cursor=asked.cursor,
    )
    with deps.db.look() as tx:
        ids = job_pages.list_job_ids(
            tx, dataset_id, filters, after=at.after, offset=at.offset, limit=size + 1
        )
        rows = job_pages.list_jobs(tx, ids[:size])
    tell(asked.request, asked.response, at, ids[size - 1] if len(ids) > size else None)
    return [_detailed(row) for row in rows]


@router.post(
    "/datasets/{dataset_id}/versions/{version_id}/items/{item_id}/jobs/{job_id}/retry",
    responses=responses(409),
)
def retry_job(deps: Room, version: VersionPath, item: ItemPath, job_id: str) -> JobAnswer:
    """Run a failed job again, with a fresh budget of attempts; of many callers one succeeds."""
    filters = Filters(version_id=version.id, item_id=item.id, job_id=identity(job_id, "job"))
    _one(deps, version, filters)
    operate.retry(deps, version.user_id, identity(job_id, "job"))
    return JobAnswer.model_validate(_values(_one(deps, version, filters)))


def _one(deps: Deps, version: Version, filters: Filters) -> Any:
    with deps.db.look() as tx:
        ids = job_pages.list_job_ids(tx, version.dataset_id, filters, limit=1)
        rows = job_pages.list_jobs(tx, ids)
    if not rows:
        raise missing("job", filters.job_id)
    return rows[0]


def _detailed(row: Any) -> JobDetailsAnswer:
    return JobDetailsAnswer.of(
        **_values(row),
        post_processor_name=row.post_processor_name,
        item_name=row.item_name,
    )


def _values(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "name": row.post_processor_name,
        "description": row.status,
        "post_processor_id": row.post_processor_id,
        "dataset_item_id": row.item_id,
        "dataset_id": row.dataset_id,
        "status": row.status,
        "attempts": row.attempts,
        "max_attempts": row.max_attempts,
        "error": row.error or None,
        "result": row.result,
        "started_at": row.started_at,
        "completed_at": row.completed_at,
        "user_id": row.user_id,
        "reason": row.reason,
        "dropped": row.dropped or {},
        "next_attempt_at": row.run_at if row.status == "pending" else None,
    }
