"""``python -m benchmarks.bulk``: many items in one request, against a bare COPY of the same rows.

A real API process on a real PostgreSQL with its default durability takes texts as JSON Lines, an
archive of texts and an archive of pictures, and gives the archive back. Printed: items per second
as the client sees them, and the most memory that the API ever had.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import httpx2
import psycopg
from PIL import Image

from benchmarks.inferences import _copy_in, _copy_out, _memory_mb
from benchmarks.servers import Servers
from ppworker import settings, wiring
from ppworker.pipeline.setup import accounts
from ppworker.store import datasets, schema
from ppworker.store.db import Database

MOST_MB = 300.0
_LABELS = 20
_NAME = "bench_bulk"
_OF_VERSION = "version_id IN (SELECT id FROM dataset_versions WHERE dataset_id = %s)"
_WRITTEN = {
    "dataset_items": "dataset_id = %s", "item_splits": _OF_VERSION, "annotations": _OF_VERSION,
}  # fmt: skip
_GIVEN = ("users", "datasets", "dataset_versions", "dataset_splits", "labels")


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk", description=__doc__)
    parser.add_argument("--items", type=int, default=20_000, help="items of each; %(default)s")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ppb") as folder:
        servers = Servers(Path(folder))
        try:
            return _measure(servers, asked.items)
        finally:
            servers.close()


def _measure(servers: Servers, items: int) -> int:
    url = servers.fresh_database(_NAME)
    db = Database(url, connections=2)
    schema.migrate(db)
    with db.begin() as tx:
        user = datasets.ensure_user(tx, "bench")
        made = [
            datasets.create_dataset(tx, user, name, content_type=kind)
            for name, kind in (("lines", "text"), ("texts", "text"), ("pictures", "images"))
        ]
    given = settings.load(database_url=url, data_dir=servers.folder / "data")
    key, _ = accounts.create_key(wiring.build_deps(given, db, emit=lambda _: None), user)
    worst = 0.0
    with _api(url, servers.folder / "data", key) as (client, pid):
        paths = [f"/datasets/{each.id}/versions/{each.version_id}" for each in made]
        runs: list[tuple[str, Callable[[], httpx2.Response]]] = [
            ("bulk create of texts", lambda: _post_lines(client, paths[0], items)),
            ("archive of texts", lambda: _post_zip(client, paths[1], _texts(items))),
            ("archive of pictures", lambda: _post_zip(client, paths[2], _pictures(items))),
            ("download of texts", lambda: client.get(f"{paths[1]}/download")),
            ("own format", lambda: client.get(f"{paths[2]}/download?format=ppworker")),
        ]
        for name, run in runs:
            servers.settle(_NAME)
            answer = run()
            took = answer.elapsed.total_seconds()
            worst = _memory_mb(pid, "VmHWM")
            _say(f"{name}: {answer.status_code}, {items / took:,.0f} items/s ({took:.1f} s), "
                 f"API {worst:.0f} MB at most")  # fmt: skip
            if answer.status_code != 200:
                _say(answer.text[:500])
                return 1
    bare_s = _bare(servers, made[0].id)
    _say(f"bare COPY of the rows of the first: {items / bare_s:,.0f} items/s ({bare_s:.1f} s)")
    db.close()
    return 0 if worst < MOST_MB else 1


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@contextmanager
def _api(url: str, data_dir: Path, key: str) -> Iterator[tuple[httpx2.Client, int]]:
    environment = os.environ | {
        "PPWORKER_DATABASE_URL": url,
        "PPWORKER_DATA_DIR": str(data_dir),
        "PPWORKER_OPERATION_WAIT_S": "300",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "ppworker", "api", "--port", "0", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        client = httpx2.Client(
            base_url=ready["address"] + "/api/v1",
            headers={"Authorization": f"Bearer {key}"},
            timeout=400,
            trust_env=False,
        )
        with client:
            yield client, process.pid
    finally:
        process.terminate()
        process.wait(30)


def _line(number: int) -> str:
    said = {
        "name": f"item {number}",
        "text": f"text number {number}, as long as a sentence that somebody wrote down",
        "splits": ["train"],
        "annotations": [{"label": f"label {number % _LABELS}"}],
    }
    return json.dumps(said) + "\n"


def _post_lines(client: httpx2.Client, path: str, items: int) -> httpx2.Response:
    body = "".join(_line(number) for number in range(items)).encode()
    kind = {"Content-Type": "application/x-ndjson"}
    return client.post(f"{path}/items/bulk", content=body, headers=kind)


def _post_zip(client: httpx2.Client, path: str, content: bytes) -> httpx2.Response:
    file = ("a.zip", content, "application/x-zip-compressed")
    return client.post(f"{path}/upload/folders", files={"file": file})


def _texts(items: int) -> bytes:
    return _packed(
        (f"train/label {n % _LABELS}/{n}.txt", f"text number {n}, a sentence".encode())
        for n in range(items)
    )


def _pictures(items: int) -> bytes:
    return _packed((f"train/label {n % _LABELS}/{n}.png", _picture(n)) for n in range(items))


def _picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 24), (number % 256, number // 256 % 256, 7)).save(out, "PNG")
    return out.getvalue()


def _packed(members: Iterator[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def _bare(servers: Servers, dataset_id: UUID) -> float:
    """COPY of the same rows straight into the tables."""
    url = servers.fresh_database("bench_bare")
    db = Database(url, connections=1)
    schema.migrate(db)
    db.close()
    with (
        psycopg.connect(servers.dsn(_NAME)) as source,
        psycopg.connect(url, autocommit=True) as target,
    ):
        for table in _GIVEN:
            _copy_in(target, table, _copy_out(source, table, "true", ()))
        rows = {
            table: _copy_out(source, table, where, (dataset_id,))
            for table, where in _WRITTEN.items()
        }
        servers.settle("bench_bare")
        started = time.monotonic()
        with target.transaction():
            for table, content in rows.items():
                _copy_in(target, table, content)
        return time.monotonic() - started


if __name__ == "__main__":
    raise SystemExit(main())
