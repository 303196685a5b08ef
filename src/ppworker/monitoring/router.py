"""The endpoints of monitoring, to be mounted on whatever port a process serves."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Header, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from ppworker.monitoring.health import Health, Verdict
from ppworker.monitoring.scrape import Scrape

T = TypeVar("T")

PATHS = ("/metrics", "/health/live", "/health/started", "/health/ready", "/health/detail")
"""What is asked every few seconds for ever; no log should tell of each time."""

_UNKEPT = {"Cache-Control": "no-store"}
_THREADS = 4


def build(
    *,
    health: Health,
    scrape: Scrape,
    detail: Callable[[], dict[str, Any]],
    allowed: Callable[[str], bool | None],
) -> APIRouter:
    """The endpoints.

    Args:
        health: the rules.
        scrape: answers ``/metrics``.
        detail: what only holders of a key may see.
        allowed: whether a bearer key is good; None when nobody can tell now. Never raises.
    """
    router = APIRouter(include_in_schema=False)
    # Threads of their own: requests that wait for a silent database must not hold up a probe.
    threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="probes")

    async def aside(ask: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, ask)

    async def live() -> Response:
        return _answer("live", health.live())  # reads a few bytes of memory: needs no thread

    async def started() -> Response:
        return _answer("started", health.started())

    async def ready() -> Response:
        return _answer("ready", await aside(health.ready))

    async def metrics() -> Response:
        text = await aside(scrape.text)
        return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4, headers=_UNKEPT)

    async def whole(authorization: Annotated[str, Header()] = "") -> Response:
        scheme, _, key = authorization.partition(" ")
        is_good = None
        if scheme.lower() == "bearer" and key.strip():
            is_good = await aside(partial(allowed, key.strip()))
            if is_good is None:
                return _problem(503, "the key cannot be checked: the database does not answer")
        if not is_good:
            return _problem(401, "a bearer key is needed; `ppworker keys create` makes one")
        return JSONResponse(await aside(detail), headers=_UNKEPT)

    methods = ["GET", "HEAD"]
    for path, answer in zip(PATHS, (metrics, live, started, ready, whole), strict=True):
        router.add_api_route(path, answer, methods=methods, response_model=None)
    return router


def _answer(what: str, verdict: Verdict) -> Response:
    body = {"status": what if verdict.is_ok else f"not {what}", **asdict(verdict)}
    del body["is_ok"]
    return JSONResponse(body, status_code=200 if verdict.is_ok else 503, headers=_UNKEPT)


def _problem(status: int, message: str) -> Response:
    headers = {**_UNKEPT, "WWW-Authenticate": "Bearer"} if status == 401 else _UNKEPT  # noqa: PLR2004
    return JSONResponse({"error": message}, status_code=status, headers=headers)
