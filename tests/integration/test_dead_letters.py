"""Dead letters and stored files on the command line, as an operator meets them."""

import hashlib
import json
import os
import subprocess
import sys
from uuid import uuid4

import pytest

from ppworker.store import accounts, blobs, datasets, dead_letters
from ppworker.worker import commands
from ppworker.worker.command_link import Taken


@pytest.fixture
def cli(database_url, tmp_path):
    def ask(*arguments, code=0, stdin="", plain=False):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "ppworker",
                *map(str, arguments),
                *([] if plain else ["--json"]),
            ],
            env=os.environ
            | {"PPWORKER_DATABASE_URL": database_url, "PPWORKER_DATA_DIR": str(tmp_path / "data")},
            capture_output=True,
            text=True,
            input=stdin,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr + done.stdout
        if code:
            return done.stderr
        return done.stdout if plain else json.loads(done.stdout)

    return ask


def bury(world, **fields):
    """Have a message refused that names this user, and a dataset that is not there."""
    with world.deps.db.begin() as tx:
        (user,) = (u for u in accounts.list_users(tx) if u.id == world.user)
    message = {
        "actor_name": "take_upload",
        "args": [],
        "kwargs": {
            "schema_version": 1,
            "key": uuid4().hex,
            "user": user.username,
            "split": "later/train",
            "items": [{"name": "a\x1b[31m.txt", "text": "x"}],
        }
        | fields,
        "message_id": uuid4().hex,
    }
    body = json.dumps(message).encode()
    commands.follow(world.deps, Taken("commands", b"1", body, 1))
    return message["kwargs"]


def kept(world, *, replayed=False):
    with world.deps.db.begin() as tx:
        return dead_letters.list_letters(tx, replayed=replayed)


def test_an_operator_lists_shows_mends_replays_and_discards(world, worlds, cli, tmp_path):
    fields = bury(world)
    bury(worlds(), schema_version=7)
    bury(world, items=[])
    listed = cli("dead-letters", "list")
    assert [each["field"] for each in listed] == ["split", "schema_version", "items"]
    assert "body" not in listed[0]
    first, second, third = (each["id"] for each in listed)

    page = cli("dead-letters", "show", first, plain=True)
    assert "\x1b" not in page
    assert "later/train" in page
    assert "no dataset 'later'" in page

    assert "split: no dataset 'later'" in cli("dead-letters", "replay", first, code=2)
    assert len(kept(world)) == 3
    with world.deps.db.begin() as tx:
        datasets.create_dataset(tx, world.user, "later")
    assert cli("dead-letters", "replay", first)["outcome"] == "done"
    assert "replayed at" in cli("dead-letters", "replay", first, code=2)

    mended = tmp_path / "mended.json"
    mended.write_text(json.dumps(fields | {"key": "mended"}))
    assert cli("dead-letters", "replay", second, "--body", mended)["outcome"] == "done"
    assert world.sql("SELECT count(*) FROM dataset_items")[0][0] == 2

    said = cli("dead-letters", "replay", third, "--body", "-", stdin=json.dumps(fields), plain=True)
    assert "it was followed before" in said
    assert kept(world) == []
    assert cli("dead-letters", "discard", first, third)["discarded"] == 2
    assert [str(letter.id) for letter in kept(world, replayed=True)] == [second]


def test_a_bad_mending_is_explained_and_changes_nothing(world, cli):
    bury(world)
    (letter,) = kept(world)
    for body, said in {
        "[1]": "--body: '-' holds no JSON object",
        "{": "--body: '-' is not JSON",
        '{"schema_version": 1}': "ppworker: key: Field required (and 3 more)",
    }.items():
        error = cli("dead-letters", "replay", letter.id, "--body", "-", stdin=body, code=2)
        assert said in error
        assert error.count("\n") == 1
    assert kept(world) == [letter]


def test_a_file_is_stored_and_may_be_named_by_its_hash(world, cli, tmp_path):
    path = tmp_path / "hello.txt"
    path.write_bytes(b"hello\n")
    sha256 = hashlib.sha256(b"hello\n").hexdigest()
    assert cli("blobs", "add", path, plain=True) == f"{sha256}  {path}\n"
    with world.deps.db.begin() as tx:
        local = accounts.find_user(tx, "local")
        assert local is not None
        assert blobs.is_owned(tx, local.id, sha256)
        assert not blobs.is_owned(tx, world.user, sha256)
    assert world.deps.blobs.path(sha256).read_bytes() == b"hello\n"
    assert "is no file" in cli("blobs", "add", tmp_path, code=2)
