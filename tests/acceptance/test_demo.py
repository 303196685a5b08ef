"""The demo's input is what it promises, its verdict is strict, and Ctrl-C leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageOps

import demo_data
import demo_operator
import demo_results
from demo_results import Check
from ppworker.domain.post_processor import TEXT_DOCUMENTS
from ppworker.embedded import acquire
from ppworker.pipeline.uploads import media
from ppworker.runners.inspector import Inspection

DEMO = Path(demo_data.__file__).with_name("demo.py")
START_S, STOP_S = 120, 90


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return demo_data.make(tmp_path_factory.mktemp("demo") / "input", seed=7)


def test_the_input_is_as_varied_as_the_main_job_asks(made):
    now = [each for each in made if each.kind != "later"]
    kinds = Counter(each.kind for each in now)
    assert demo_data.distinct(now) == len(now) >= 60
    assert min(kinds["page"], kinds["letter"], kinds["speech"], kinds["source"]) >= 10
    with Inspection(max_text_bytes=100_000) as inspection:
        facts = [media.inspect(each.path, each.path.name, inspection) for each in now]
    types = {each.media_type for each in facts}
    assert types >= {"image/png", "image/jpeg", "image/tiff", "application/pdf", "text/plain",
                     "text/x-python", "application/json", "text/csv", "audio/wav", "audio/mpeg",
                     TEXT_DOCUMENTS[0]}  # fmt: skip
    assert all((each.page_count or 0) >= 2 for each in facts if each.media_type.endswith("/pdf"))


def test_the_same_seed_makes_the_same_files(made, tmp_path):
    again = demo_data.make(tmp_path, seed=7)
    assert [each.path.read_bytes() for each in again] == [each.path.read_bytes() for each in made]
    other = demo_data.make(tmp_path / "other", seed=8)
    assert demo_data.distinct([*made, *other]) > len(made)


def test_a_turned_photograph_is_upright_for_who_reads_its_note(tmp_path):
    page = demo_data.render(["garden window", "bridge market"])
    demo_data.save_turned(page, tmp_path / "turned.jpg")
    with Image.open(tmp_path / "turned.jpg") as stored:
        assert stored.size == page.size[::-1]
        upright = ImageOps.exif_transpose(stored).convert("RGB")
    difference = ImageChops.difference(upright, page).convert("L")
    assert difference.point(lambda value: 255 * (value > 64)).getbbox() is None


def test_a_pdf_with_real_letters_has_no_pictures(made):
    (path,) = (each.path for each in made if each.path.name == "page-with-letters.pdf")
    content = path.read_bytes()
    assert content.count(b"/Type /Page ") == 2
    assert b"/Image" not in content


def test_a_check_that_does_not_hold_is_named_and_fails_the_demo(capsys):
    good, bad = Check("the sky is up", holds=True), Check("pigs fly", holds=False, detail="0 of 3")
    assert demo_results.verdict([good]) == 0
    assert demo_results.verdict([good, bad]) == 1
    assert "1 of 2 do NOT hold:\n  pigs fly" in capsys.readouterr().out


def test_a_folder_with_other_things_in_it_is_not_emptied(tmp_path):
    keepsake = tmp_path / "keepsake.txt"
    keepsake.write_text("mine")
    with pytest.raises(SystemExit, match="holds something else"):
        demo_operator.empty_folder(tmp_path)
    assert keepsake.exists()


def test_the_folder_of_an_earlier_demo_is_emptied_unless_something_runs_in_it(tmp_path):
    demo_operator.empty_folder(tmp_path)
    with acquire(tmp_path), pytest.raises(SystemExit, match="in use"):
        demo_operator.empty_folder(tmp_path)
    assert len(list(tmp_path.iterdir())) > 1
    demo_operator.empty_folder(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks for processes in /proc")
def test_ctrl_c_stops_workers_and_servers(tmp_path):
    folder = tmp_path / "data"
    argv = [sys.executable, str(DEMO), "--data-dir", str(folder)]
    demo = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        wait_for(demo, r"file kinds: .* pending")
        assert len(demo_results.processes_of(folder)) >= 4  # both servers, `up`, a worker
        os.killpg(demo.pid, signal.SIGINT)  # as a terminal does: to all that runs in it
        said, _ = demo.communicate(timeout=STOP_S)
    finally:
        demo.kill()
        demo.wait()
    assert demo.returncode == 130, said
    assert "Traceback" not in said
    assert demo_results.processes_of(folder) == []


def wait_for(process, pattern):
    """Read on until a line matches."""
    by = time.monotonic() + START_S
    said = []
    for line in process.stdout:
        said.append(line)
        if re.search(pattern, line):
            return
        assert time.monotonic() < by, "".join(said)
    pytest.fail("it ended before: " + "".join(said))
