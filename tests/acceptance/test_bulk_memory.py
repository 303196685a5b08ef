"""Thousands of items at once: in bounded memory, and exact though whoever imports them is killed.

PPWORKER_TEST_ITEMS sets how many; by default few enough for every run.
"""

import io
import json
import os
import signal
import zipfile
from functools import partial
from pathlib import Path

import httpx2
import pytest

from factories import World
from live_workers import Start, wait_for
from ppworker.pipeline.transfer import shelf, stage
from ppworker.store import operations
from ppworker.store.operations import Operation
from running_program import Running

MOST_MB = 300
_LABELS = 20


def items_of(test: str) -> int:
    return int(os.environ.get("PPWORKER_TEST_ITEMS", "0")) or {"memory": 4_000, "kill": 6_000}[test]


def memory_mb(pid: int, name: str = "VmHWM") -> float:
    (line,) = [
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith(f"{name}:")
    ]
    return int(line.split()[1]) / 1024


def archive(total: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(total):
            content = f"text number {number}"
            # Every tenth is a file, the others are texts.
            ending = "bin" if number % 10 == 0 else "txt"
            binary = b"\0" if ending == "bin" else b""
            file.writestr(
                f"train/label {number % _LABELS}/{number}.{ending}", content.encode() + binary
            )
    return out.getvalue()


def read(world: World, id_: object) -> Operation:
    with world.deps.db.begin() as tx:
        found = operations.find_operation(tx, world.user, id_)  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.timeout(280)
def test_the_api_takes_and_gives_thousands_of_items_in_bounded_memory(tmp_path: Path) -> None:
    total = items_of("memory")
    with Running(tmp_path / "data", "api", "--port", "0", PPWORKER_OPERATION_WAIT_S="250") as api:
        key, address = api.ready["key"], api.ready["address"]
        before = memory_mb(api.process.pid, "VmRSS")
        with httpx2.Client(
            base_url=f"{address}/api/v1", headers={"Authorization": f"Bearer {key}"}, timeout=270,
            trust_env=False,
        ) as client:  # fmt: skip
            made = client.post("/datasets", json={"name": "d", "content_type": "text"}).json()
            path = f"/datasets/{made['id']}/versions/{made['versions'][0]['id']}"
            lines = "".join(
                json.dumps({"text": f"text number {n}", "annotations": [{"label": f"l{n % 9}"}]})
                + "\n"
                for n in range(total)
            )
            answer = client.post(
                f"{path}/items/bulk", content=lines.encode(),
                headers={"Content-Type": "application/x-ndjson"},
            )  # fmt: skip
            assert (answer.status_code, answer.json()["items_created"]) == (200, total)
            bulk_mb, bulk_s = memory_mb(api.process.pid), answer.elapsed.total_seconds()
            answer = client.post(f"{path}/upload", files={"file": ("a.zip", archive(total))})
            assert answer.status_code == 200
            archive_mb, archive_s = memory_mb(api.process.pid), answer.elapsed.total_seconds()
            answer = client.get(f"{path}/download", params={"format": "ppworker"})
            assert answer.status_code == 200
            with zipfile.ZipFile(io.BytesIO(answer.content)) as file:
                assert len(file.read("items.jsonl").splitlines()) == 2 * total
            export_mb = memory_mb(api.process.pid)
        print(
            f"{total} items; memory {before:.0f} MB, after lines {bulk_mb:.0f}, an archive "
            f"{archive_mb:.0f}, an export {export_mb:.0f}; {total / bulk_s:.0f} and "
            f"{total / archive_s:.0f} items/s"
        )
        assert export_mb < MOST_MB
        assert export_mb - before < 100, "it grows with the number of items"


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_kill_9_three_times_while_an_archive_is_imported_leaves_no_trace(
    live: World, start: Start, tmp_path: Path
) -> None:
    total = items_of("kill")
    path = tmp_path / "a.zip"
    path.write_bytes(archive(total))
    processor = live.processor(file_types=("bin",), splits=("train",))
    accepted = stage.take_archive(live.deps, live.user, live.dataset.version_id, path)

    def is_at(goal: int) -> bool:
        return read(live, accepted.operation_id).done >= goal

    for kill in range(1, 4):
        workers = [start(), start()]
        goal = max(read(live, accepted.operation_id).done + 1, total * kill // 8)
        wait_for(partial(is_at, goal), seconds=60, what="progress")
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
            worker.wait()
        left = read(live, accepted.operation_id)
        assert left.status in {"processing", "pending"}, "the kill was to land on the way"
        print(f"kill {kill} at {left.done} of {total}")
    last = start()
    wait_for(lambda: read(live, accepted.operation_id).is_over, seconds=200, what="the end")
    done = read(live, accepted.operation_id)
    files = total // 10
    assert (done.status, done.done) == ("completed", total)
    assert done.counts == {
        "items_created": total, "annotations_created": total, "jobs_planned": files,
    }  # fmt: skip
    assert live.sql("SELECT count(*), count(DISTINCT name) FROM dataset_items") == [(total, total)]
    assert live.sql("SELECT count(DISTINCT item_id) FROM item_splits") == [(total,)]
    assert live.sql("SELECT count(*) FROM labels") == [(_LABELS,)]
    assert len(live.statuses(processor)) == files
    for (sha256,) in live.sql("SELECT sha256 FROM blobs"):
        assert live.deps.blobs.has(sha256)
    assert not shelf.folder(live.deps, accepted.operation_id).exists()
    live.check()
    print(f"claims: {done.lease_token}, memory {memory_mb(last.pid):.0f} MB at most")
    assert memory_mb(last.pid) < MOST_MB
