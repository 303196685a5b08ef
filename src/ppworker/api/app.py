"""The application: put together from its rooms and collaborators, which are passed to it."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ppworker import __version__
from ppworker.api import errors
from ppworker.api.auth import Uses
from ppworker.api.methods import Methods
from ppworker.api.published import Published
from ppworker.api.resources import (
    accounts,
    annotations,
    api_keys,
    applications,
    archives,
    blobs,
    bulk,
    datasets,
    downloads,
    inferences,
    item_states,
    items,
    jobs,
    labels,
    logos,
    model_inferences,
    model_versions,
    models,
    operations,
    post_processors,
    reviews,
    shares,
    splits,
    versions,
)
from ppworker.api.resources.inferences import Waiting
from ppworker.api.turns import Turns
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.uploads.thumbnails import Thumbnails

log = logging.getLogger(__name__)

PREFIX = "/api/v1"

ROUTERS = (
    accounts.registering,
    accounts.entrance,
    accounts.router,
    api_keys.router,
    shares.router,
    datasets.router,
    logos.router,
    logos.uploads,
    versions.router,
    splits.router,
    labels.router,
    items.router,
    items.uploads,
    downloads.router,
    bulk.router,
    archives.router,
    archives.uploads,
    item_states.router,
    annotations.router,
    reviews.router,
    reviews.undoing,
    # Before the post-processors: the word jobs goes before an id.
    jobs.router,
    post_processors.router,
    inferences.router,
    applications.router,
    models.router,
    model_versions.router,
    model_inferences.router,
    model_inferences.asking,
    operations.router,
    blobs.uploads,
)
"""Every room of the contract; each but the first two knows that its caller has a key."""

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route, for the documentation and for whoever must not forget any."""

    method: str
    path: str
    summary: str


def routes() -> list[Route]:
    """Every route of the contract that there is."""
    found = [
        Route(method=method, path=f"{PREFIX}{route.path}", summary=route.description)
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in sorted(route.methods or ())
    ]
    return sorted(found, key=lambda route: (route.path, route.method))


def schema() -> dict[str, Any]:
    """The published schema, as every running application tells it."""
    app = _published()
    for router in ROUTERS:
        app.include_router(router, prefix=PREFIX)
    return app.openapi()


def _published(lifespan: Lifespan | None = None) -> Published:
    return Published(
        title="ppworker",
        version=__version__,
        openapi_url=f"{PREFIX}/openapi.json",
        # Their pages would load programs from other hosts.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Clients of the contract send JSON without saying so.
        strict_content_type=False,
        lifespan=lifespan,
    )


def _is_open() -> bool:
    return True


def create_app(
    deps: Deps,
    *,
    threads: int,
    is_open: Callable[[], bool] = _is_open,
    stopping: Event | None = None,
    others: Sequence[APIRouter] = (),
) -> FastAPI:
    """Make the application.

    Args:
        deps: the pipeline's collaborators.
        threads: requests that are worked on side by side; the database should have as many
            connections.
        is_open: whether requests are followed yet; before, the database may be away or strange.
        stopping: set when requests that wait for an operation shall wait no longer.
        others: routers beside the contract, such as health and metrics.
    """
    turns = Turns(deps)
    pictures = Thumbnails(deps.blobs, deps.settings.data_dir)
    app = _published(_alive(threads, turns, pictures))
    app.state.deps = deps
    app.state.is_open = is_open
    app.state.uses = Uses()
    app.state.hashing = accounts.in_turn()
    app.state.turns = turns
    app.state.thumbnails = pictures
    app.state.waiting = Waiting(threads // 2, stopping or Event())
    known = Methods([*((PREFIX, router) for router in ROUTERS), *(("", each) for each in others)])
    errors.install(app, known.of)
    known.guard(app)
    for router in ROUTERS:
        app.include_router(router, prefix=PREFIX)
    for router in others:
        app.include_router(router)
    app.add_middleware(Frame)
    return app


def _alive(threads: int, turns: Turns, pictures: Thumbnails) -> Lifespan:
    """So many threads while it serves, and no process of ours behind its end."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = threads
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(pictures.close)
            await anyio.to_thread.run_sync(turns.close)

    return lifespan


class Frame:
    """Puts our headers on every answer, and answers where nobody else could."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back with the headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_begun = False

        async def with_headers(message: Message) -> None:
            nonlocal is_begun
            if message["type"] == "http.response.start":
                is_begun = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, with_headers)
        except ClientDisconnect:
            return  # nobody is there to be answered
        except Exception as error:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if is_begun:
                raise  # the answer is cut short, so that nobody takes it for a whole one
            await errors.our_fault(error)(scope, receive, with_headers)
