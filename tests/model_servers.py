"""A model behind HTTP, and the runner that asks it: what networks and servers do to a model."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from ppworker.errors import RunnerError, RunnerOverloaded, RunnerUnavailable
from ppworker.runners.base import RawAnswer, RunnerInput, RunnerSpec


class HttpRunner:
    """Asks ``url`` about a whole batch in one request, as remote models are asked."""

    spec = RunnerSpec(
        tasks=("classification",), reads="any", max_batch=1000, isolated=False, thread_safe=True
    )

    def __init__(self, *, url: str) -> None:
        self.url = url

    def load(self) -> None:
        pass

    def predict(self, inputs: Sequence[RunnerInput]) -> list[RawAnswer | RunnerError]:
        body = json.dumps([each.text or each.name for each in inputs]).encode()
        request = urllib.request.Request(self.url, data=body)  # noqa: S310  our own server
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                return [RawAnswer(raw=each) for each in json.loads(answer.read())]
        except urllib.error.HTTPError as error:
            with error:
                asked = error.headers.get("Retry-After")
                kind = RunnerOverloaded if error.code == 429 else RunnerUnavailable
                raise kind(
                    f"HTTP {error.code}", retry_after_s=None if asked is None else float(asked)
                ) from None
        except urllib.error.URLError as error:
            raise RunnerUnavailable(f"not reached: {error.reason}") from None

    def close(self) -> None:
        pass


class Call(NamedTuple):
    """A request that the server answered."""

    at: float
    """When it began, in seconds since 1970."""
    status: int
    inputs: int


@dataclass
class ModelServer:
    """A model server on this machine; ``status`` decides each answer by the number of the call."""

    status: Callable[[int], int] = lambda _: 200
    retry_after: str | None = None
    seconds_per_input: float = 0.0
    calls: list[Call] = field(default_factory=list)
    most_at_once: int = 0
    _inside: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/"

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        at = time.time()
        given = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self._lock:
            status = self.status(len(self.calls))
            self.calls.append(Call(at, status, len(given)))
            self._inside += 1
            self.most_at_once = max(self.most_at_once, self._inside)
        if status == 200:
            time.sleep(self.seconds_per_input * len(given))
        said = [{"predictions": [{"label": "cat", "score": 0.9}]} for _ in given]
        body = json.dumps(said).encode() if status == 200 else b"no"
        request.send_response(status)
        if self.retry_after is not None and status != 200:
            request.send_header("Retry-After", self.retry_after)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
        with self._lock:
            self._inside -= 1
