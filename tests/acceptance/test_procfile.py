"""The Procfile, read by honcho: a worker comes up on the embedded default and stops clean."""

import re
import signal
import subprocess
import time
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


def test_the_procfile_names_a_release_step_and_a_worker():
    assert ENTRIES == {"release": "ppworker migrate", "worker": "ppworker worker"}


@pytest.mark.slow
def test_honcho_starts_a_worker_and_stops_it_clean(tmp_path):
    data_dir = tmp_path / "data"
    procfile = f"-f {TOP / 'Procfile'} -d {tmp_path}"
    settings = {"PPWORKER_DATA_DIR": str(data_dir), "PPWORKER_PROCESSES": "1"}
    with Reader(tmp_path, f"honcho {procfile} start worker", **settings) as reader:
        reader.run(f"honcho {procfile} start release")
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
