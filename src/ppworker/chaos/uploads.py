"""Somebody who uploads by HTTP while things break: how long each upload took, what went wrong."""

import http.client
import json
import threading
import time
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from ppworker.chaos.load import Load
from ppworker.chaos.programs import LateError, Program

_TIMEOUT_S = 60.0
_AGAIN_S = 0.1
_UNAVAILABLE = 503
_OK = range(200, 300)


class RefusedError(RuntimeError):
    """An upload was not taken; the message says what was answered."""


class Uploader:
    """A client of the HTTP API, for one dataset.

    Args:
        api: a program that serves it, ready.
        load: the dataset.
    """

    def __init__(self, api: Program, load: Load) -> None:
        dataset = load.dataset
        self._path = f"/api/v1/datasets/{dataset.id}/versions/{load.split.version_id}/items"
        self._authorization = f"Bearer {api.ready['key']}"
        host = urlsplit(api.address).netloc
        self._connection = http.client.HTTPConnection(host, timeout=_TIMEOUT_S)

    def one(self, name: str) -> float:
        """Upload one text; the seconds until its answer.

        Raises:
            RefusedError: it was not taken, or nobody answered.
        """
        started = time.monotonic()
        body = json.dumps({"name": name, "text": f"text of {name}"})
        code, said = self._ask(self._path, body, **{"Content-Type": "application/json"})
        if code not in _OK:
            raise RefusedError(f"{code}: {said}")
        return time.monotonic() - started

    def many(self, key: str, items: int, *, seconds: float) -> int:
        """Upload so many texts at once, again with the same key until they are taken for certain.

        Returns:
            How often it had to be asked again.

        Raises:
            RefusedError: it was not taken, and never will be.
            LateError: it was not taken in time.
        """
        lines = [json.dumps({"name": f"{key}-{i}", "text": f"text {i}"}) for i in range(items)]
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": key}
        until, tries = time.monotonic() + seconds, 0
        while True:
            code, said = self._ask(f"{self._path}/bulk", "\n".join(lines), **headers)
            if code in _OK:
                return tries
            if code not in {0, _UNAVAILABLE}:
                raise RefusedError(f"{code}: {said}")
            if time.monotonic() > until:
                raise LateError(f"an upload was not taken within {seconds:g} s: {code}: {said}")
            tries += 1
            time.sleep(_AGAIN_S)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _ask(self, path: str, body: str, **headers: str) -> tuple[int, str]:
        """Status and text of an answer; 0 when there was none."""
        try:
            self._connection.request(
                "POST", path, body.encode(), {"Authorization": self._authorization, **headers}
            )
            answer = self._connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")[:300]
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()  # opened again by the next request
            return 0, str(error)


class SteadyUploads:
    """Uploads one text after the other in a thread, as long as the ``with`` statement lasts.

    Attributes:
        seconds: until the answer, of each upload that was taken.
        errors: what was said of each that was not.
    """

    def __init__(self, api: Program, load: Load, *, every_s: float, prefix: str) -> None:
        self.seconds: list[float] = []
        self.errors: list[str] = []
        self._uploader = Uploader(api, load)
        self._every_s = every_s
        self._prefix = prefix
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uploads", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._uploader.close()

    def _run(self) -> None:
        number = 0
        while not self._ended.is_set():
            started = time.monotonic()
            try:
                self.seconds.append(self._uploader.one(f"{self._prefix}-{number}"))
            except RefusedError as error:
                self.errors.append(str(error))
            number += 1
            self._ended.wait(max(0.0, self._every_s - (time.monotonic() - started)))


def waits_s(load: Load, prefix: str) -> list[float]:
    """Seconds from the upload of each text of ``SteadyUploads`` to the first claim of its job."""
    rows: list[Any] = load.cluster.sql(
        "SELECT extract(epoch FROM min(a.started_at) - j.created_at)::float AS wait_s "
        "FROM post_processor_jobs j JOIN dataset_items i ON i.id = j.item_id "
        "JOIN job_attempts a ON a.job_id = j.id WHERE i.name LIKE :prefix || '-%' "
        "GROUP BY j.id, j.created_at",
        prefix=prefix,
    )
    return [row.wait_s for row in rows]
