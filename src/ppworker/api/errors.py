"""What each error becomes on the wire: one table from error class to status, one shape."""

import errno
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ppworker.domain.text import clean_text
from ppworker.errors import (
    CommitUnknown,
    Conflict,
    Forbidden,
    Invalid,
    Malformed,
    NotFound,
    PpworkerError,
    Stale,
    StoreRefused,
    StoreUnavailable,
    TooLarge,
    TooMany,
    Unauthenticated,
    Unavailable,
)

STATUS: Mapping[type[PpworkerError], int] = {
    Malformed: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    Stale: 412,
    TooLarge: 413,
    Invalid: 422,
    TooMany: 429,
    StoreRefused: 422,
    StoreUnavailable: 503,
    Unavailable: 503,
}
"""The status of each error class, and of those below it; what is not here is our own fault."""

_RETRY_AFTER_S = 2
_HEADERS: Mapping[int, Mapping[str, str]] = {
    401: {"WWW-Authenticate": "Bearer"},
    503: {"Retry-After": str(_RETRY_AFTER_S)},
}


class Problem(BaseModel):
    """Why a request was not followed."""

    message: str
    severity: str = "error"
    field: str = ""
    """What of the request is at fault, empty where nothing in it is."""


class StaleProblem(Problem):
    """Why a conditional write was not followed."""

    current_version: int
    """The version that there is by now; read it, and repeat your change on that."""


def install(app: FastAPI, methods_of: Callable[[str], Sequence[str]]) -> None:
    """Have every error answered in our shape.

    Args:
        app: the application.
        methods_of: the methods that there are for a path.
    """

    async def protocol(request: Request, error: Exception) -> JSONResponse:
        """What the framework itself refuses: no such route, another method, an unreadable body."""
        if not isinstance(error, HTTPException):
            raise TypeError
        headers = dict(error.headers or {})
        if error.status_code == 405 and (known := methods_of(request.url.path)):  # noqa: PLR2004
            headers["Allow"] = ", ".join(known)  # the framework names those of one route only
        message = _PROTOCOL.get(error.status_code, str(error.detail))
        return _answer(error.status_code, message, **headers)

    app.add_exception_handler(PpworkerError, _ours)
    app.add_exception_handler(RequestValidationError, _unfit)
    app.add_exception_handler(HTTPException, protocol)


_PROTOCOL = {404: "there is no such route", 405: "the route does not know this method"}


_SHAPES: Mapping[int, type[Problem]] = {412: StaleProblem}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The description of errors for the published schema."""
    return {
        status: {
            "model": _SHAPES.get(status, Problem),
            "description": HTTPStatus(status).phrase,
        }
        for status in sorted(statuses)
    }


def status_of(error: PpworkerError) -> int:
    """The status of an error, by its class or the nearest one above it."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return 500


def _answer(status: int, message: str, *, field: str = "", **headers: str) -> JSONResponse:
    # What a request said is quoted, and half a character of it could not be sent.
    problem = Problem(message=clean_text(message)[0], field=clean_text(field)[0])
    return JSONResponse(
        problem.model_dump(),
        status_code=status,
        headers={**_HEADERS.get(status, {}), **headers},
    )


async def _ours(_request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, PpworkerError):
        raise TypeError  # cannot be: installed for that class
    status = status_of(error)
    field = getattr(error, "field", "")
    if isinstance(error, CommitUnknown):
        message = "the database went away while this was written; look whether it happened"
    elif isinstance(error, StoreUnavailable):
        message = "the database cannot be reached now; try again"
    elif isinstance(error, StoreRefused):
        message = "the database refuses a value of the request"
    elif status == 500:  # noqa: PLR2004
        raise error
    else:
        message = str(error)
    if isinstance(error, Stale):
        stale = StaleProblem(message=message, field=field, current_version=error.current_version)
        return JSONResponse(stale.model_dump(), status_code=status)
    if isinstance(error, TooMany):
        again = {"Retry-After": str(error.retry_after_s)}
        return _answer(status, message, field=field, **again)
    return _answer(status, message, field=field)


async def _unfit(_request: Request, error: Exception) -> JSONResponse:
    """A request that does not fit its model: unreadable is 400, unfit is 422."""
    if not isinstance(error, RequestValidationError):
        raise TypeError
    first = error.errors()[0]
    where, *path = first["loc"]
    if first["type"] == "json_invalid":
        return _answer(400, f"the body is not JSON: {first['ctx']['error']}")
    if where != "body":
        return _answer(400, _sentence(first), field=str(path[-1]) if path else "")
    if not path:
        return _answer(422, "the body must be JSON of the right shape; send it as application/json")
    return _answer(422, _sentence(first), field=_path(path))


def _sentence(about: Mapping[str, Any]) -> str:
    message = str(about["msg"])
    return message[:1].lower() + message[1:]


def _path(parts: list[str | int]) -> str:
    """``inferences[17].confidence``, as the pipeline writes it too."""
    words = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts]
    return "".join(words).removeprefix(".")


def our_fault(error: Exception) -> JSONResponse:
    """The answer to what nobody expected: it is in the log, and the client is told none of it.

    That a disk is full is told, since only somebody else can help.
    """
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return _answer(507, "there is no room here to store this; nothing was kept")
    return _answer(500, "something went wrong here; it is in the log")
