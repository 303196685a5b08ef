"""Who asks, found out before a byte of the body is read, and how long a body may be."""

import time
import unicodedata
from collections.abc import Callable, Coroutine
from contextlib import suppress
from threading import Lock
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, HTTPException, Request, Response, Security
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive

from ppworker.errors import Forbidden, Malformed, StoreUnavailable, TooLarge, Unauthenticated
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup.accounts import READ, WRITE
from ppworker.store import accounts
from ppworker.store.accounts import Holder

READING = frozenset({"GET", "HEAD", "OPTIONS"})
_TOUCH_S = 60.0
_REMEMBERED = 10_000
_MOST_OPEN_BYTES = 64 * 1024

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def room(request: Request) -> Deps:
    """The collaborators that the application was made with."""
    found: Deps = request.app.state.deps
    return found


Room = Annotated[Deps, Depends(room)]


class BoundedRoute(APIRoute):
    """A route whose body has a limit."""

    def get_route_handler(self) -> Handler:
        """The handler, behind the limit."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handle(_bounded(request, room(request).settings.max_body_bytes))

        return bounded


class OpenRoute(APIRoute):
    """A route for whoever comes, with or without a key; its body is a few lines."""

    def get_route_handler(self) -> Handler:
        """The handler, behind the limit."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            if not request.app.state.is_open():
                raise StoreUnavailable("the database has not been seen yet")
            return await handle(_bounded(request, _MOST_OPEN_BYTES))

        return bounded


class KeyedRoute(BoundedRoute):
    """A route for whoever has a key; without one the body is not even read."""

    def get_route_handler(self) -> Handler:
        """The handler, behind the key."""
        return _keyed(super().get_route_handler(), _queried(self.dependant))


class KeyedUploadRoute(APIRoute):
    """A route for whoever has a key that reads its body piece by piece, by limits of its own."""

    def get_route_handler(self) -> Handler:
        """The handler, behind the key."""
        return _keyed(super().get_route_handler(), _queried(self.dependant))


def _keyed(handle: Handler, queried: frozenset[str]) -> Handler:
    async def keyed(request: Request) -> Response:
        request.state.caller = await run_in_threadpool(_admit, request)
        for name in queried:
            if len(request.query_params.getlist(name)) > 1:
                raise Malformed("stands several times in the query; give it once", field=name)
        return await handle(request)

    return keyed


def _queried(dependant: Dependant) -> frozenset[str]:
    """The names that a route looks for in the query; each has one value."""
    own = frozenset(each.alias for each in dependant.query_params)
    return own.union(*(_queried(each) for each in dependant.dependencies))


def caller(
    request: Request,
    _documented: Annotated[
        object, Security(HTTPBearer(auto_error=False, scheme_name="key", description="API key"))
    ] = None,
) -> Holder:
    """Who asks."""
    found: Holder = request.state.caller
    return found


Caller = Annotated[Holder, Depends(caller)]


def _admit(request: Request) -> Holder:
    deps = room(request)
    if not request.app.state.is_open():
        raise StoreUnavailable("the database has not been seen yet")
    holder = _holder(deps, request.headers.get("authorization", ""))
    scope = READ if request.method in READING else WRITE
    if holder.scopes and scope not in holder.scopes:
        raise Forbidden(f"this key is not for {scope}", field="Authorization")
    _note_use(request, deps, holder.key_id)
    return holder


def _holder(deps: Deps, header: str) -> Holder:
    key, username = _credentials(header)
    if not key:
        raise Unauthenticated(
            "a key is needed; send it as Authorization: Bearer KEY", field="Authorization"
        )
    with deps.db.look() as tx:
        holder = accounts.find_key(tx, key)
    if holder is None or not (username is None or holder.username in _spellings(username)):
        raise Unauthenticated("the key is unknown, disabled or expired", field="Authorization")
    return holder


def _credentials(header: str) -> tuple[str, str | None]:
    """The key, and the user's name where an older client sends ``username:key``."""
    scheme, _, rest = header.strip().partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip(), None
    username, colon, key = header.strip().rpartition(":")
    return (key, username) if colon else ("", None)


def _spellings(name: str) -> set[str]:
    """A name as it may be meant: a header is bytes, and clients differ in what they mean."""
    found = {name}
    with suppress(UnicodeError):
        found.add(name.encode("latin-1").decode("utf-8"))
    return {unicodedata.normalize("NFC", each) for each in found}


class Uses:
    """Remembers when the use of a key was noted last, so that not every request writes."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._noted: dict[UUID, float] = {}

    def is_due(self, key_id: UUID) -> bool:
        """Whether it is time to note it again; if so, that is remembered."""
        now = time.monotonic()
        with self._lock:
            if now - self._noted.get(key_id, -_TOUCH_S) < _TOUCH_S:
                return False
            if len(self._noted) >= _REMEMBERED:
                self._noted.clear()
            self._noted[key_id] = now
            return True


def _note_use(request: Request, deps: Deps, key_id: UUID) -> None:
    uses: Uses = request.app.state.uses
    if uses.is_due(key_id):
        try:
            with deps.db.begin() as tx:
                accounts.touch_key(tx, key_id)
        except StoreUnavailable:
            return  # a time of last use is worth no request


def _bounded(request: Request, most: int) -> Request:
    """The request with a body that ends in an error behind so many bytes.

    Raises:
        TooLarge: it says itself that it is longer.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise TooLarge(_too_long(most))
    return Request(request.scope, _counting(request.receive, most))


def _counting(receive: Receive, most: int) -> Receive:
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            # Of all errors only this one passes the framework's reading unchanged.
            raise HTTPException(413, _too_long(most))
        return message

    return counted


def _too_long(most: int) -> str:
    return f"the body has more than {most} bytes; send less at a time"
