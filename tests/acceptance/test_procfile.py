"""The Procfile, read by honcho: worker and API come up on the embedded default and stop clean."""

import re
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from doc_commands import TOP, Reader

ENTRIES = dict(re.findall(r"^(\w+): (.+)$", (TOP / "Procfile").read_text(), re.MULTILINE))


def pids_below(folder: Path) -> list[int]:
    """Processes whose data folder is this one, by their environment or command line."""
    wanted = str(folder).encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue
        if wanted in told:
            found.append(int(process.name))
    return found


def address_of(reader: Reader) -> str:
    """Where the API says that it listens."""
    until = time.monotonic() + 60
    while not (found := re.search(r"address +(http://\S+)", reader.said())):
        assert time.monotonic() < until, reader.said()
        time.sleep(0.1)
    return found[1]


def test_the_procfile_names_a_release_step_a_worker_and_the_api():
    assert ENTRIES == {
        "release": "ppworker migrate",
        "worker": "ppworker worker",
        "api": "ppworker api",
    }


@pytest.mark.slow
def test_honcho_starts_worker_and_api_and_stops_them_clean(tmp_path):
    data_dir = tmp_path / "data"
    procfile = f"-f {TOP / 'Procfile'} -d {tmp_path}"
    settings = {
        "PPWORKER_DATA_DIR": str(data_dir),
        "PPWORKER_PROCESSES": "1",
        "PPWORKER_API_PORT": "0",
    }
    with Reader(tmp_path, f"honcho {procfile} start worker api", **settings) as reader:
        reader.run(f"honcho {procfile} start release")
        with urllib.request.urlopen(f"{address_of(reader)}/health/ready") as answer:  # noqa: S310
            assert answer.status == 200
        reader.run("ppworker datasets create letters")
        reader.run("ppworker processors create letters kind --runner magika")
        reader.run("ppworker items add --text 'Dear Sir or Madam,' --split letters/train")
        assert "0 of them failed" in reader.run("ppworker jobs wait --dataset letters")
        reader.stop(signal.SIGTERM)
        said = reader.said()
    assert "worker.stopped" in said
    assert re.search(r'"in_time": ?true|in_time=True', said), said
    until = time.monotonic() + 10
    while (left := pids_below(data_dir)) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == [], subprocess.run(["ps", "ax"], capture_output=True, text=True, check=False)
    assert not list(data_dir.rglob("postmaster.pid"))
