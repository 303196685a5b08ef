"""Accounts: registration, login and logout, who asks, and the end of an account."""

import json
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field
from starlette.exceptions import HTTPException

from ppworker.api.auth import Caller, Handler, KeyedRoute, OpenRoute, Room
from ppworker.api.errors import Problem, responses
from ppworker.api.paths import identity, missing
from ppworker.api.wire import Answer, Asked, Text
from ppworker.domain.text import clean_text
from ppworker.errors import PpworkerError, TooMany
from ppworker.pipeline.setup import closing, logins
from ppworker.pipeline.setup.accounts import EMAIL, PLAIN, USERNAME, Person
from ppworker.pipeline.setup.logins import LoggedIn
from ppworker.pipeline.setup.passwords import MOST
from ppworker.store.accounts import SESSION

HASHING_AT_ONCE = 2
"""Passwords of one process that are hashed side by side, each in 64 MiB; others wait their turn
without keeping a thread from other requests."""
_MOST_WAITING = 100
_PLAIN = {"pattern": PLAIN}

T = TypeVar("T")


class LoginAnswer(Answer):
    """Who was let in, with the key of the session."""

    id: Text
    username: str
    email: str
    name: str
    firstname: str
    apikey: str


class Credentials(Asked):
    """What a login says; what else a client sends, such as a device token, is not looked at."""

    username: Annotated[str, Field(max_length=1000, examples=["anna"])]
    password: Annotated[str, Field(min_length=1, max_length=MOST, examples=["correct horse"])]


class Registration(Asked):
    """Who wants an account."""

    username: Annotated[
        str,
        Field(
            min_length=1, max_length=200, examples=["anna"], json_schema_extra={"pattern": USERNAME}
        ),
    ]
    """It holds no colon and no control characters."""
    email: Annotated[
        str,
        Field(
            min_length=3,
            max_length=254,
            examples=["anna@example.org"],
            json_schema_extra={"pattern": EMAIL},
        ),
    ]
    name: Annotated[
        str | None, Field(max_length=200, examples=["Ash"], json_schema_extra=_PLAIN)
    ] = None
    firstname: Annotated[
        str | None, Field(max_length=200, examples=["Anna"], json_schema_extra=_PLAIN)
    ] = None
    password: Annotated[str, Field(min_length=1, max_length=MOST, examples=["correct horse"])]


class Refused(Answer):
    """A registration as it came, without its password."""

    username: str
    email: str
    name: str
    firstname: str
    password: str = ""


class RegistrationProblem(Problem):
    """Why there is no account."""

    registration: Refused | None = None


class ContextAnswer(Answer):
    """Who asks. Organizations, roles and permissions are the contract's; there are none here."""

    user_id: Text
    username: str
    scopes: list[str]
    """What the key is for; none means everything."""
    organizations: list[Any] = []
    roles: list[Any] = []
    permissions: list[str] = []


class LogoutAnswer(Answer):
    """Whether a session ended; a key that a person made does not end here."""

    ended: bool


class RegistrationRoute(OpenRoute):
    """A route whose errors say what was refused."""

    def get_route_handler(self) -> Handler:
        """The handler, with its errors in the contract's shape."""
        handle = super().get_route_handler()

        async def told(request: Request) -> Response:
            try:
                return await handle(request)
            except (PpworkerError, RequestValidationError, HTTPException) as error:
                kind = next(
                    each
                    for each in (PpworkerError, RequestValidationError, HTTPException)
                    if isinstance(error, each)
                )
                answer: Response = await request.app.exception_handlers[kind](request, error)
                return _with_registration(answer, getattr(request.state, "registration", None))

        return told


_ACCOUNTS = "accounts"
registering = APIRouter(route_class=RegistrationRoute, tags=[_ACCOUNTS])
entrance = APIRouter(route_class=OpenRoute, tags=[_ACCOUNTS])
router = APIRouter(route_class=KeyedRoute, tags=[_ACCOUNTS], responses=responses(401, 403, 503))


def in_turn() -> CapacityLimiter:
    """What lets few requests hash a password at a time."""
    return CapacityLimiter(HASHING_AT_ONCE)


@registering.post(
    "/register",
    responses={
        status: {**about, "model": RegistrationProblem}
        for status, about in responses(400, 403, 409, 413, 422, 429, 503).items()
    },
)
async def register(request: Request, deps: Room, body: Registration) -> LoginAnswer:
    """Make an account, where registration is open; the key is that of a first login."""
    request.state.registration = body
    person = Person(
        username=body.username,
        email=body.email,
        name=body.name or "",
        firstname=body.firstname or "",
    )
    work = partial(logins.register, deps, person, body.password, address=_address(request))
    return _shown(await _hashing(request, work))


@entrance.post("/login", responses=responses(400, 401, 413, 422, 429, 503))
async def log_in(request: Request, deps: Room, body: Credentials) -> LoginAnswer:
    """Log in. The key is a new one each time, and lives for some days."""
    work = partial(logins.log_in, deps, body.username, body.password, address=_address(request))
    return _shown(await _hashing(request, work))


@router.post("/logout")
def log_out(deps: Room, caller: Caller) -> LogoutAnswer:
    """End the session whose key is sent. Keys that a person made stay as they are."""
    return LogoutAnswer(ended=caller.kind == SESSION and logins.log_out(deps, caller))


@router.get("/me/context")
def read_context(caller: Caller) -> ContextAnswer:
    """Who asks."""
    return ContextAnswer.of(
        user_id=caller.user_id, username=caller.username, scopes=sorted(caller.scopes)
    )


@router.delete("/users/{user_id}", status_code=204, responses=responses(404))
def delete_user(deps: Room, caller: Caller, user_id: str) -> None:
    """End your account: its keys and shares are gone at once, and its datasets with them."""
    if identity(user_id, "user") != caller.user_id:
        raise missing("user", user_id)
    closing.delete_user(deps, caller.user_id)


async def _hashing(request: Request, work: Callable[[], T]) -> T:
    turns: CapacityLimiter = request.app.state.hashing
    if turns.statistics().tasks_waiting >= _MOST_WAITING:
        raise TooMany("too many people log in at this moment; try again", retry_after_s=1)
    return await anyio.to_thread.run_sync(work, limiter=turns)


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _shown(let_in: LoggedIn) -> LoginAnswer:
    user = let_in.user
    return LoginAnswer.of(
        id=user.id,
        username=user.username,
        email=user.email,
        name=user.name,
        firstname=user.firstname,
        apikey=let_in.key,
    )


def _with_registration(answer: Response, asked: Registration | None) -> Response:
    """The same error with what was refused beside it; a password is never said back."""
    about = json.loads(bytes(answer.body))
    about["registration"] = (
        None
        if asked is None
        else {
            "username": clean_text(asked.username)[0],
            "email": clean_text(asked.email)[0],
            "name": clean_text(asked.name or "")[0],
            "firstname": clean_text(asked.firstname or "")[0],
            "password": "",
        }
    )
    headers = {
        name: value
        for name, value in answer.headers.items()
        if name not in {"content-length", "content-type"}
    }
    return Response(
        json.dumps(about),
        status_code=answer.status_code,
        headers=headers,
        media_type="application/json",
    )
