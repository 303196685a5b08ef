"""Which files an upload is made of, and what is refused before anything is written."""

import os
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from ppworker.cli import paths
from ppworker.errors import Invalid
from ppworker.settings import Settings

NOBODY = 65534
LIMITS = Settings(max_text_bytes=100, max_file_bytes=1000)


def names(found, root):
    return [str(path.relative_to(root)) for path in found.files]


def test_folders_are_walked_in_the_order_of_names(tmp_path):
    for name in ("b/2.txt", "b/1.txt", "a.txt", "c.txt", "b/d/9.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    found = paths.find([str(tmp_path)], LIMITS)
    assert names(found, tmp_path) == ["a.txt", "c.txt", "b/1.txt", "b/2.txt", "b/d/9.txt"]
    assert found.skipped == []


def test_hidden_files_are_skipped_in_folders_and_taken_when_named(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x").write_text("x")
    hidden = tmp_path / ".hidden"
    hidden.write_text("x")
    found = paths.find([str(tmp_path)], LIMITS)
    assert found.files == []
    assert {(path.name, reason) for path, reason in found.skipped} == {
        (".git", "hidden"),
        (".hidden", "hidden"),
    }
    assert paths.find([str(hidden)], LIMITS).files == [hidden]


def test_links_are_followed_inside_a_folder_and_nowhere_else(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inside.txt").write_text("x")
    (tmp_path / "outside.txt").write_text("secret")
    (folder / "a").symlink_to(folder / "inside.txt")
    (folder / "b").symlink_to(tmp_path / "outside.txt")
    (folder / "c").symlink_to(folder)
    (folder / "d").symlink_to(tmp_path / "nothing")
    (folder / "e").symlink_to("../outside.txt")
    (folder / "f").symlink_to(folder / "f")
    found = paths.find([str(folder)], LIMITS)
    assert names(found, folder) == ["a", "inside.txt"]
    assert {path.name: reason for path, reason in found.skipped} == {
        "b": "a link that leads out of the folder",
        "c": "a link to a folder",
        "d": "a link to nothing",
        "e": "a link that leads out of the folder",
        "f": "a link to nothing",
    }


def test_special_files_are_skipped_in_folders_and_refused_when_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        found = paths.find([str(tmp_path)], LIMITS)
    assert {path.name for path, _ in found.skipped} == {"pipe", "s"}
    for path in (tmp_path / "pipe", "/dev/null", "/dev/zero"):
        with pytest.raises(Invalid, match="device, pipe or socket"):
            paths.find([str(path)], LIMITS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing.txt", "does not exist"),
        ("../etc/passwd", "give the absolute path"),
        ("/usr/../etc/passwd", "give the absolute path"),
        ("a\0b", "cannot be read"),
        ("x" * 5000, "cannot be read"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(given, message):
    with pytest.raises(Invalid, match=message) as caught:
        paths.find([given], LIMITS)
    assert caught.value.field == "PATH"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(Invalid, match="Not a directory"):
        paths.find([str(tmp_path / "file" / "x")], LIMITS)


def test_what_is_too_large_is_found_before_anything_is_added(tmp_path):
    (tmp_path / "ok.txt").write_text("x")
    (tmp_path / "text.txt").write_text("x" * 101)
    with pytest.raises(Invalid, match="PPWORKER_MAX_TEXT_BYTES"):
        paths.find([str(tmp_path)], LIMITS)
    (tmp_path / "text.txt").write_bytes(b"\0" * 101)
    assert len(paths.find([str(tmp_path)], LIMITS).files) == 2
    (tmp_path / "text.txt").write_bytes(b"\0" * 1001)
    with pytest.raises(Invalid, match="PPWORKER_MAX_FILE_BYTES"):
        paths.find([str(tmp_path)], LIMITS)


def test_an_unreadable_file_is_named():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "locked").write_text("x")
        (folder / "locked").chmod(0)
        with as_somebody(), pytest.raises(Invalid, match="locked' cannot be read"):
            paths.find([name], LIMITS)


@contextmanager
def as_somebody():
    """Without root's right to read everything."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(me)
