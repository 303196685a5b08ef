"""Long work that goes on behind a request: how far it is, how it ended."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BeforeValidator, Field

from ppworker.api.auth import Caller, KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paging import absent
from ppworker.api.paths import identity, missing
from ppworker.api.wire import Answer, OptionalText, Text, Time
from ppworker.domain.job import Status
from ppworker.store import operations
from ppworker.store.operations import Operation

router = APIRouter(route_class=KeyedRoute, tags=["operations"], responses=responses(401, 403, 503))

_MOST = 1000
_USUAL = 100


class OperationAnswer(Answer):
    """An operation; done of total units of work, total is null while nobody knows."""

    id: Text
    kind: str
    status: Status
    done: int
    total: int | None
    counts: dict[str, int]
    """What was done, by word."""
    result: dict[str, Any] = {}
    """What it made, and what it left out with the reasons."""
    dataset_id: OptionalText = None
    reason: str = ""
    error: str | None = None
    created_at: Time
    started_at: Time | None = None
    completed_at: Time | None = None


def shown(operation: Operation) -> OperationAnswer:
    """An operation as clients read it."""
    return OperationAnswer.of(
        id=operation.id,
        kind=operation.kind,
        status=Status(operation.status),
        done=operation.done,
        total=operation.total,
        counts=dict(operation.counts),
        result=dict(operation.result),
        dataset_id=operation.dataset_id,
        reason=operation.reason,
        error=operation.error or None,
        created_at=operation.created_at,
        started_at=operation.started_at,
        completed_at=operation.completed_at,
    )


def begun(response: Response, operation: Operation) -> OperationAnswer:
    """An operation that goes on behind an answer of 202, which says where to look for it."""
    response.headers["Location"] = f"/api/v1/operations/{operation.id}"
    return shown(operation)


def later(operation: Operation) -> Response:
    """The same as a whole answer, for routes that answer with something else when they can."""
    answer = Response(
        shown(operation).model_dump_json(), status_code=202, media_type="application/json"
    )
    begun(answer, operation)
    return answer


@router.get("/operations", responses=responses(400))
def list_operations(
    deps: Room,
    caller: Caller,
    *,
    status: Annotated[Status | None, BeforeValidator(absent), Query()] = None,
    limit: Annotated[
        Annotated[int, Field(ge=1, le=_MOST)] | None, BeforeValidator(absent), Query()
    ] = None,
) -> list[OperationAnswer]:
    """Your operations, newest first."""
    with deps.db.look() as tx:
        found = operations.list_operations(
            tx,
            caller.user_id,
            limit=limit or _USUAL,
            status=None if status is None else str(status),
        )
    return [shown(operation) for operation in found]


@router.get("/operations/{operation_id}", responses=responses(404))
def read_operation(deps: Room, caller: Caller, operation_id: str) -> OperationAnswer:
    """One operation."""
    wanted = identity(operation_id, "operation")
    with deps.db.look() as tx:
        found = operations.find_operation(tx, caller.user_id, wanted)
    if found is None:
        raise missing("operation", operation_id)
    return shown(found)
