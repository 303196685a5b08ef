"""What people say of suggestions: accepted, rejected, or a whole post-processor's output undone."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from ppworker.api.auth import KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paths import DatasetPath, VersionPath, identities, identity
from ppworker.api.resources import operations as operation_routes
from ppworker.api.resources.annotations import AnnotationAnswer, described
from ppworker.api.resources.operations import OperationAnswer
from ppworker.api.wire import Answer, Asked, Id, IdOrEmpty
from ppworker.domain.edit import Action, Source, Verdict
from ppworker.domain.job import Status
from ppworker.errors import Conflict, Invalid
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.edits import reviews, undo
from ppworker.store import labels, suggestions, versions
from ppworker.store.datasets import as_id
from ppworker.store.operations import Operation
from ppworker.store.suggestions import Suggestions

router = APIRouter(
    route_class=KeyedRoute, tags=["annotations"], responses=responses(401, 403, 404, 503)
)
undoing = APIRouter(
    route_class=KeyedRoute, tags=["post-processors"], responses=responses(401, 403, 404, 503)
)
_LATER: dict[int | str, dict[str, Any]] = {
    202: {"model": OperationAnswer, "description": "It takes longer: the operation"}
}
Share = Annotated[float | None, Field(ge=0, le=1)]


class ReviewFilter(Asked):
    """Which suggestions: those that match all that is given; an empty filter means every one."""

    post_processor_id: IdOrEmpty | None = None
    label_id: IdOrEmpty | None = None
    source: Source | None = None
    min_score: Share = None
    """Inclusive, like the other; what has no score matches neither."""
    max_score: Share = None


class Review(Asked):
    """A review of many suggestions, by their ids or by what they are."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"action": "accept", "ids": ["0198c6b5-3c1e-7a51-9d0c-5b6f7e8d9a10"]},
                {"action": "reject", "filter": {"max_score": 0.2}},
            ]
        }
    )

    action: Action
    ids: Annotated[list[Id] | None, Field(max_length=reviews.MOST)] = None
    filter: ReviewFilter | None = None


class ReviewAnswer(Answer):
    """What a review did; by a filter, the operation that did it or goes on."""

    action: Action
    changed: int = 0
    already: int = 0
    """They were as you say before."""
    conflicts: int = 0
    """A person decided otherwise before; that stands."""
    missing: int = 0
    """The version has no such annotation."""
    operation: OperationAnswer | None = None


class UndoBody(Asked):
    """Where a post-processor's output is undone."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"version_id": "0198c6b5-3c1e-7a51-9d0c-5b6f7e8d9a10"}]}
    )

    version_id: Id


@router.post(
    "/datasets/{dataset_id}/versions/{version_id}/annotations/{annotation_id}/accept",
    responses=responses(409),
)
def accept_annotation(deps: Room, version: VersionPath, annotation_id: str) -> AnnotationAnswer:
    """Say that a suggestion is right: no run changes it any more. Twice is once."""
    return _one(deps, version.id, annotation_id, "accept")


@router.post(
    "/datasets/{dataset_id}/versions/{version_id}/annotations/{annotation_id}/reject",
    responses=responses(409),
)
def reject_annotation(deps: Room, version: VersionPath, annotation_id: str) -> AnnotationAnswer:
    """Say that a suggestion is wrong: it goes, and no run brings it back. Twice is once."""
    return _one(deps, version.id, annotation_id, "reject")


def _one(deps: Deps, version_id: UUID, annotation_id: str, action: Action) -> AnnotationAnswer:
    id_ = identity(annotation_id, "annotation")
    return described(reviews.review_one(deps, version_id, id_, action))


@router.post(
    "/datasets/{dataset_id}/versions/{version_id}/annotations/review",
    response_model=ReviewAnswer,
    responses=responses(400, 409, 413, 422) | _LATER,
)
def review_annotations(request: Request, deps: Room, version: VersionPath, body: Review) -> Any:
    """Accept or reject up to a thousand suggestions by their ids, or all that match a filter.

    Those by ids are reviewed at once and together. By a filter it is an operation; what takes
    longer than a request may is answered by 202 with it, and goes on.
    """
    if (body.ids is None) == (body.filter is None):
        raise Invalid("give either ids or a filter", field="ids")
    if body.ids is not None:
        counts = reviews.review(deps, version.id, identities(body.ids, "ids"), body.action)
        return ReviewAnswer(
            action=body.action,
            changed=counts[Verdict.CHANGED],
            already=counts[Verdict.ALREADY],
            conflicts=counts[Verdict.CONFLICT],
            missing=counts[reviews.MISSING],
        )
    wanted = _filter(deps, version.dataset_id, version.id, body.filter or ReviewFilter())
    id_ = reviews.begin(deps, version.dataset_id, version.user_id, wanted, body.action)
    operation = _follow(request, deps, version.user_id, id_)
    if not operation.is_over:
        return _later(operation)
    changed = sum(n for word, n in operation.counts.items() if word.startswith("annotations_"))
    return ReviewAnswer(
        action=body.action, changed=changed, operation=operation_routes.shown(operation)
    )


@undoing.post(
    "/datasets/{dataset_id}/post-processors/{post_processor_id}/undo",
    response_model=OperationAnswer,
    responses=responses(400, 409, 413, 422) | _LATER,
)
def undo_post_processor(
    request: Request, deps: Room, dataset: DatasetPath, post_processor_id: str, body: UndoBody
) -> Any:
    """Take away what a post-processor suggested in a version, but for what people looked at.

    Accepted and edited annotations stay, and so does text. Its answers are kept, so that a reapply
    brings the suggestions back. Refused while jobs of it are pending or processing there.
    """
    wanted = as_id(body.version_id)
    with deps.db.look() as tx:
        version = (
            None
            if wanted is None
            else versions.find_version(tx, dataset.user_id, dataset.id, wanted)
        )
    if version is None:
        raise Invalid(f"the dataset has no version '{body.version_id}'", field="version_id")
    id_ = undo.begin(
        deps, dataset.id, dataset.user_id, version.id, identity(post_processor_id, "post-processor")
    )
    operation = _follow(request, deps, dataset.user_id, id_)
    return operation_routes.shown(operation) if operation.is_over else _later(operation)


def _filter(deps: Deps, dataset_id: UUID, version_id: UUID, given: ReviewFilter) -> Suggestions:
    """What a filter means; what it names must be there, or it would look like nothing to do."""
    processor_id = _named(given.post_processor_id, "filter.post_processor_id")
    label_id = _named(given.label_id, "filter.label_id")
    if None not in {given.min_score, given.max_score} and (
        (given.min_score or 0) > (given.max_score or 0)
    ):
        raise Invalid("is below min_score, so nothing can match", field="filter.max_score")
    with deps.db.look() as tx:
        if processor_id and not suggestions.find_any_processor(tx, dataset_id, processor_id):
            raise Invalid("the dataset has no such one", field="filter.post_processor_id")
        if label_id and label_id not in {each.id for each in labels.list_labels(tx, version_id)}:
            raise Invalid("the version has no such label", field="filter.label_id")
    return Suggestions(
        version_id=version_id,
        post_processor_id=processor_id,
        label_id=label_id,
        source=given.source,
        min_score=given.min_score,
        max_score=given.max_score,
    )


def _named(given: str | None, name: str) -> UUID | None:
    if not given:
        return None
    found = as_id(given)
    if found is None:
        raise Invalid(f"'{given}' is no id", field=name)
    return found


def _follow(request: Request, deps: Deps, user_id: UUID, id_: UUID) -> Operation:
    """Work on an operation for as long as a request waits."""
    operation: Operation = request.app.state.waiting.follow(deps, user_id, id_)
    if operation.status == Status.FAILED:
        raise Conflict(f"operation {operation.id} failed: {operation.error or operation.reason}")
    return operation


def _later(operation: Operation) -> Response:
    return Response(
        operation_routes.shown(operation).model_dump_json(),
        status_code=202,
        media_type="application/json",
        headers={"Location": f"/api/v1/operations/{operation.id}"},
    )
