"""The HTTP API of a running program, asked as its own words say."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from doc_commands import Reader, blocks, make_folder
from running_program import PROGRAM, Running, environment, eventually


def child(parent: int, role: str) -> int:
    """Pid of the process of a role that a supervisor runs."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            status = (entry / "status").read_text()
            line = (entry / "cmdline").read_bytes().split(b"\0")
            if f"PPid:\t{parent}\n" in status and role.encode() in line:
                return int(entry.name)
    raise AssertionError(f"no {role} below {parent}")


@pytest.mark.slow
def test_up_serves_the_api_and_keeps_its_port_through_everything(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with Running(data_dir, "up", "--port", "0", "--processes", "1") as up:
        ready = up.ready
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", ready["address"])
        assert ready["database"].startswith("postgresql://")
        assert ready["data_dir"] == str(data_dir)
        key_file = data_dir / "api.key"
        assert key_file.read_text().strip() == ready["key"]
        assert key_file.stat().st_mode & 0o777 == 0o600

        status, made = up.ask("/datasets", {"name": "d", "content_type": "text"})
        assert status == 200
        dataset, version = made["id"], made["versions"][0]["id"]
        base = f"/datasets/{dataset}/versions/{version}"
        processor = {"name": "a", "model_type": "ner", "output_target": "annotations"}
        assert up.ask(f"/datasets/{dataset}/post-processors", processor)[0] == 200
        item = up.ask(f"{base}/items", {"text": "500 Oak Avenue, Portland, OR 97201"})[1]

        def annotated() -> Any:
            return up.ask(f"{base}/items/{item['id']}")[1]["annotations"]

        assert eventually(annotated)[0]["source"] == "model"

        # The API dies: whoever asks meanwhile is answered by the next one, on the same port.
        before = child(up.process.pid, "api")
        os.kill(before, signal.SIGKILL)
        assert up.ask("/datasets")[0] == 200
        assert child(up.process.pid, "api") != before

        # PostgreSQL dies and is started again: the API goes on and says so meanwhile.
        api = child(up.process.pid, "api")
        postmaster = int((data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(postmaster, signal.SIGKILL)
        seen = set()

        def answers() -> bool:
            seen.add(up.ask("/datasets")[0])
            return 200 in seen and 503 in seen

        eventually(answers)
        assert seen <= {200, 503}
        eventually(lambda: up.ask("/datasets")[0] == 200)
        assert child(up.process.pid, "api") == api, "it has not ended for that"

        stored_key = ready["key"]
    assert up.process.returncode == 0
    assert stored_key not in data_dir.with_suffix(".log").read_text()


@pytest.mark.slow
def test_the_line_that_up_prints_works(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    log = tmp_path / "said"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*PROGRAM, "up", "--port", "0", "--processes", "1", "--data-dir", str(data_dir)],
            env=environment(), stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        eventually(lambda: "ready; Ctrl-C" in log.read_text(), within_s=120)
        said = dict(re.findall(r"^(\w+) {2,}(.+)$", log.read_text(), re.MULTILINE))
        assert said["key"] == (data_dir / "api.key").read_text().strip()
        assert run_line(said["try"]) == []
        assert said["address"] in said["try"]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the page calls curl")
def test_the_page_that_shows_its_use_works(tmp_path: Path) -> None:
    """Each command of it, in its order, in a folder of a reader's own."""
    folder = tmp_path / "reader"
    make_folder(folder)
    page = "docs/how-to/use-the-http-api.md"
    with Reader(folder, "ppworker up --port 0 --processes 1") as reader:
        (address,) = re.findall(r"^address +(http://\S+)$", reader.said(), re.MULTILINE)
        script = "\n".join(blocks(page)).replace("curl -s ", "curl -sSf ")
        assert script.count("http://127.0.0.1:8765") == 1
        said = reader.run(script.replace("http://127.0.0.1:8765", address))
        assert re.findall(r"^ppw_\S{43}$", said, re.MULTILINE)
        assert '"model_type":"ner"' in said
        assert "500 Oak Avenue" in said
        reader.run("ppworker jobs wait --dataset letters")
        assert json.loads((folder / "item.json").read_text())["name"] == "note"
        shown = json.loads(reader.run("ppworker jobs list letters --json"))
        assert [job["status"] for job in shown] == ["completed"] * 2


def run_line(line: str) -> Any:
    """What a line that calls curl answers; asked without it where there is none."""
    if shutil.which("curl"):
        done = subprocess.run(
            ["bash", "-euc", line], capture_output=True, text=True, timeout=60, check=True
        )
        return json.loads(done.stdout)
    program, flag, header, address = shlex.split(line)
    assert (program, flag) == ("curl", "-H")
    request = urllib.request.Request(address, headers=dict([header.split(": ", 1)]))  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return json.loads(answer.read())


@pytest.mark.slow
def test_api_alone_stops_in_order_and_keys_come_from_the_command_line(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    held = socket.create_server(("127.0.0.1", 0))
    port = held.getsockname()[1]
    with held:
        used = subprocess.run(
            [*PROGRAM, "api", "--port", str(port), "--data-dir", str(data_dir)],
            env=environment(), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert used.returncode == 2
    assert str(port) in used.stderr
    assert used.stderr.count("\n") == 1

    def command(*arguments: str) -> Any:
        done = subprocess.run(
            [*PROGRAM, *arguments, "--json", "--data-dir", str(data_dir)],
            env=environment(), capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    # Nobody runs the operation but the request itself: no worker is there.
    slow = {"PPWORKER_OPERATION_WAIT_S": "60"}
    with Running(data_dir, "api", "--host", "127.0.0.1", "--port", "0", **slow) as api:
        assert api.ready["processes"] == 0
        shout(api)
        command("users", "create", "anna")
        key = command("keys", "create", "--user", "anna", "--scope", "read")
        assert api.ask("/datasets", key=key["key"]) == (200, [])
        assert api.ask("/datasets", {"name": "x"}, key=key["key"])[0] == 403
        command("keys", "disable", key["id"])
        assert api.ask("/datasets", key=key["key"])[0] == 401
        shown = command("keys", "list", "--user", "anna")
        assert [each["key_prefix"] for each in shown] == [key["key"][:8]]
        assert key["key"] not in json.dumps(shown)
        assert command("keys", "delete", key["id"])["id"] == key["id"]
        assert command("keys", "list", "--user", "anna") == []

        status, made = api.ask("/datasets", {"name": "d", "content_type": "text"})
        assert status == 200
        split = made["versions"][0]["splits"][0]
        path = f"/datasets/{made['id']}/versions/{split['version_id']}/splits/{split['id']}"
        many = [{"id": str(n), "name": f"text {n}", "inference_items": [
            {"prediction": f"label {n % 50}", "confidence": 1}]} for n in range(20_000)]  # fmt: skip
        answer: list[tuple[int, Any]] = []
        asking = threading.Thread(
            target=lambda: answer.append(api.ask(f"{path}/add_inferences", {"inferences": many}))
        )
        asking.start()
        eventually(lambda: any(each["done"] for each in api.ask("/operations")[1]))
        assert api.stop() == 0
        asking.join(30)
    ((status, operation),) = answer
    assert status == 202, "it is told what goes on, not cut off"
    assert operation["total"] == 20_000
    assert 0 < operation["done"] < 20_000
    assert [each["id"] for each in command("operations", "list")] == [operation["id"]]


def shout(api: Running) -> None:
    """Send what is no HTTP: a stranger's bytes cost a connection, not the server."""
    host, port = api.ready["address"].removeprefix("http://").split(":")
    for garbage in (b"\0" * 100, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000, b"\x16\x03\x01"):
        with (
            socket.create_connection((host, int(port)), timeout=10) as raw,
            contextlib.suppress(OSError),
        ):
            raw.sendall(garbage + b"\r\n\r\n")
            raw.recv(1000)
