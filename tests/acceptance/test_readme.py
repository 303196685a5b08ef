"""The commands of the README and of the pages, run as they stand there."""

import re
import signal
from itertools import takewhile

import pytest

from doc_commands import PROGRAM, TOP, Reader, blocks, commands, make_folder

OWN_FILES = "Your own files"
PAGES = (
    "docs/tutorial/first-annotations.md",
    "docs/how-to/put-a-model-back-and-retry.md",
    "docs/how-to/backfill.md",
    "docs/how-to/stop-and-drain-workers.md",
    "docs/how-to/add-a-runner.md",
    "docs/how-to/add-inferences.md",
    "docs/how-to/change-settings-and-reapply.md",
)


def test_the_readme_needs_two_commands_for_the_demo_and_six_for_own_files():
    assert commands("README.md", below="See it work") == ["make demo", "make test"]
    own = commands("README.md", below=OWN_FILES)
    assert len(own) == 6
    assert all(command.startswith(f"{PROGRAM} ") for command in own)


def test_every_make_target_that_a_page_names_exists():
    targets = re.findall(r"^([a-z-]+):.*## ", (TOP / "Makefile").read_text(), re.MULTILINE)
    pages = [TOP / "README.md", *(TOP / "docs").rglob("*.md")]
    named = {word for page in pages for word in re.findall(r"`make ([a-z-]+)`", page.read_text())}
    assert named <= set(targets)
    assert {"install", "demo", "test", "test-system"} <= set(targets)


@pytest.mark.slow
def test_the_six_commands_of_the_readme_count_a_strangers_files(tmp_path):
    make_folder(tmp_path / "my-folder")
    serve, *others = commands("README.md", below=OWN_FILES)
    with Reader(tmp_path, serve) as reader:
        said = [reader.run(command) for command in others]
        assert reader.stop(signal.SIGINT) == 0
    assert "3 items, 3 jobs" in said[2]
    assert "0 of them failed" in said[3]
    assert "mine/train: 3 items, 0 unlabelled, 3 annotations" in said[4]
    counts = dict(re.findall(r"^(\w+) +(\d+) +\d+ *$", said[4], re.MULTILINE))
    assert counts == {"png": "1", "python": "1", "txt": "1"}
    assert not list((tmp_path / ".ppworker").rglob("postmaster.pid"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_of_the_tutorial_and_the_how_tos_work_as_they_stand(tmp_path):
    make_folder(tmp_path / "my-folder")
    (source,) = blocks("docs/how-to/add-a-runner.md", "python")
    (tmp_path / "my_models.py").write_text(source)
    (lines,) = blocks("docs/how-to/add-inferences.md", "json")
    (tmp_path / "calls.jsonl").write_text(lines)
    said: dict[str, str] = {}
    with Reader(tmp_path, PYTHONPATH=str(tmp_path)) as reader:
        for page in PAGES:
            for command in commands(page):
                if command.startswith(("make ", "export ")) or command == f"{PROGRAM} up":
                    continue
                said[command] = reader.run(command)
        annotated = reader.run(f"{PROGRAM} stats show mine/train")
        assert "every invariant holds" in reader.run(f"{PROGRAM} verify")
        assert "equal their recount" in reader.run(f"{PROGRAM} stats verify")
    failed = next(out for command, out in said.items() if command.endswith("--status failed"))
    rows = [line.split() for line in takewhile(str.strip, failed.splitlines()[1:])]
    assert {(row[1], row[-1]) for row in rows} == {
        ("read", "unreadable_input"),
        ("address", "no_input"),
    }
    assert "address ZipCode" in annotated
    assert "shout" in said[f"{PROGRAM} stats show letters/train"]
    assert "address city" in said[f"{PROGRAM} stats show mine/train"]
    added = said[f"{PROGRAM} inferences add calls.jsonl --split calls/train"]
    assert re.search(r"2 annotations added\n.* 1 items created\n", added)
