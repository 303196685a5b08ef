"""``health``: asks a running process how it is, for people and for probes of orchestrators."""

import json
from enum import StrEnum
from http.client import HTTPException
from typing import Annotated, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import typer

from ppworker import settings
from ppworker.cli import render
from ppworker.cli.session import Call, command
from ppworker.errors import Invalid

_TIMEOUT_S = 5.0
_LONGEST_ANSWER = 64 * 1024


class Check(StrEnum):
    """What may be asked."""

    LIVE = "live"
    STARTED = "started"
    READY = "ready"


Wanted = Annotated[
    Check,
    typer.Argument(
        metavar="CHECK",
        help="live: it gets on; started: it has begun to work; ready: work sent to it is done.",
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="Where it listens, e.g. http://127.0.0.1:8765; by default the API's address, or the "
        "workers' where PPWORKER_WORKER_PORT is set.",
        show_default=False,
    ),
]


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add the command to the program."""
    command(root, name, summary=summary)(health)


def health(call: Call, check: Wanted, url: Url = None) -> None:
    """Ask whether a running process is live, started or ready; exit 0 if it is, else 1."""
    address = _address(url)
    is_ok, answer = _ask(f"{address}/health/{check}")
    if call.as_json:
        render.as_json({"url": address, "is_ok": is_ok, **answer})
    else:
        render.say(str(answer["status"]))
        for name in ("reasons", "degraded"):
            render.say(*(f"{name}: {render.line(str(each))}" for each in answer.get(name, ())))
    if not is_ok:
        raise typer.Exit(1)


def _address(url: str | None) -> str:
    if url is None:
        found = settings.load()
        port = found.api_port if found.worker_port is None else found.worker_port
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(found.api_host, found.api_host)  # noqa: S104
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise Invalid("is no address; write one like http://127.0.0.1:8765", field="--url")
    return url.rstrip("/")


def _ask(url: str) -> tuple[bool, dict[str, Any]]:
    """Whether the answer is yes, and what it says."""
    opener = build_opener(ProxyHandler({}))  # the process is near; a proxy would not know it
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as response:
            return True, _read(response.read(_LONGEST_ANSWER))
    except HTTPError as error:
        with error:
            return False, _read(error.read(_LONGEST_ANSWER))
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return False, {"status": "no answer", "reasons": [str(reason)]}


def _read(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if isinstance(found, dict) and "status" in found:
        return found
    return {"status": "no answer", "reasons": ["what answers there is not ppworker"]}
