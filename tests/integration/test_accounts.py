"""Users and keys: what lets somebody in, what does not, what is remembered of it."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter

from api_server import Api, new_user, served
from factories import World
from ppworker.api.app import create_app
from ppworker.errors import Conflict, Invalid, NotFound, Unauthenticated
from ppworker.pipeline.setup import accounts as making
from ppworker.pipeline.setup import logins
from ppworker.pipeline.setup.accounts import Person
from ppworker.store import accounts


def keep(world: World, folder: Path) -> str:
    return making.keep_key(world.deps.db, world.user, folder)


def test_a_key_is_random_shown_once_and_stored_as_a_hash(world: World) -> None:
    plaintext, shown = making.create_key(world.deps, world.user, name="mine")
    other, _ = making.create_key(world.deps, world.user)
    assert plaintext != other
    assert plaintext.startswith("ppw_")
    assert len(plaintext) == 4 + 43
    assert shown.key_prefix == plaintext[:8]
    assert plaintext not in str(world.sql("SELECT * FROM api_keys"))
    with world.deps.db.begin() as tx:
        holder = accounts.find_key(tx, plaintext)
        assert holder is not None
        assert holder[:3] == (world.user, frozenset(), shown.id)
        assert holder.kind == accounts.KEY
        assert accounts.find_key(tx, plaintext + "x") is None
        assert accounts.find_key(tx, "\ud800") is None


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"scopes": ["admin"]}, "scopes"),
        ({"expires_days": 0}, "expires_days"),
        ({"expires_days": 10**9}, "expires_days"),
        ({"name": "x" * 201}, "name"),
        ({"name": "a\n"}, "name"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(
    world: World, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(Invalid) as caught:
        making.create_key(world.deps, world.user, **options)
    assert caught.value.field == field
    assert world.sql("SELECT 1 FROM api_keys") == []


@pytest.mark.parametrize("name", ["", "  ", "a:b", "a\nb", "x" * 201])
def test_a_name_that_cannot_be_sent_is_no_username(world: World, name: str) -> None:
    with pytest.raises(Invalid) as caught:
        making.create_user(world.deps, Person(username=name))
    assert caught.value.field == "username"


def test_names_of_users_are_taken_once(world: World) -> None:
    assert making.create_user(world.deps, Person(username=" anna ")).username == "anna"
    with pytest.raises(Conflict):
        making.create_user(world.deps, Person(username="anna"))
    with world.deps.db.begin() as tx:
        assert accounts.find_user(tx, "nobody") is None
        assert [user.username for user in accounts.list_users(tx)][-1] == "anna"


def test_only_a_live_key_lets_in(api: Api) -> None:
    world = api.world

    def status(key: str) -> int:
        return api.with_header(f"Bearer {key}").get("/datasets").status_code

    key, shown = making.create_key(world.deps, world.user, expires_days=1)
    assert status(key) == 200
    with world.deps.db.begin() as tx:
        assert accounts.set_disabled(tx, shown.id, disabled=True).disabled
    assert status(key) == 401
    with world.deps.db.begin() as tx:
        accounts.set_disabled(tx, shown.id, disabled=False)
    assert status(key) == 200
    world.sql("UPDATE api_keys SET expires_at = now() - interval '1 s' WHERE id = :i", i=shown.id)
    assert status(key) == 401
    world.sql("UPDATE api_keys SET expires_at = NULL WHERE id = :i", i=shown.id)
    assert status(key) == 200
    with world.deps.db.begin() as tx:
        assert accounts.delete_key(tx, shown.id).id == shown.id
    assert status(key) == 401
    with world.deps.db.begin() as tx, pytest.raises(NotFound):
        accounts.delete_key(tx, shown.id)


def test_older_clients_send_their_name_with_the_key(api: Api) -> None:
    new_user(api.deps, "anna")
    with api.deps.db.begin() as tx:
        anna = accounts.find_user(tx, "anna")
    assert anna is not None
    key, _ = making.create_key(api.deps, anna.id)
    for header, status in ((f"anna:{key}", 200), (f"bob:{key}", 401), (f":{key}", 401),
                           (f"anna:{key}x", 401)):  # fmt: skip
        assert api.with_header(header).get("/datasets").status_code == status, header


def test_the_last_use_is_written_at_most_once_a_minute(api: Api) -> None:
    def used() -> Any:
        return api.world.sql("SELECT last_used_at FROM api_keys ORDER BY id")[0][0]

    assert used() is None
    api.me.get("/datasets")
    first = used()
    assert first is not None
    api.me.get("/datasets")
    assert used() == first
    with api.deps.db.begin() as tx:  # another process asks too
        key = accounts.list_keys(tx, api.world.user)[0]
        accounts.touch_key(tx, key.id)
    assert used() == first
    api.world.sql("UPDATE api_keys SET last_used_at = now() - interval '2 min'")
    with api.deps.db.begin() as tx:
        accounts.touch_key(tx, key.id)
    assert used() > first


def test_the_key_of_a_data_folder_is_made_once_and_again_when_it_works_no_more(
    world: World, worlds: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "folder"
    key = keep(world, folder)
    path = folder / "api.key"
    assert path.read_text() == f"{key}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert keep(world, folder) == key
    other = worlds()
    assert making.keep_key(world.deps.db, other.user, folder) != key, "it was somebody else's"
    key = keep(world, folder)
    for spoil in (
        lambda: world.sql("UPDATE api_keys SET disabled = true"),
        lambda: world.sql("UPDATE api_keys SET expires_at = now()"),
        lambda: world.sql("UPDATE api_keys SET scopes = '{read}'"),
        lambda: world.sql("DELETE FROM api_keys"),
        lambda: path.write_text("nonsense"),
        lambda: path.write_bytes(b"\xff\xfe"),
        path.unlink,
        lambda: path.chmod(0o644),
    ):
        spoil()
        again = keep(world, folder)
        assert again != key
        assert path.stat().st_mode & 0o777 == 0o600
        key = again
    assert keep(world, folder) == key
    assert [each.name for each in folder.iterdir()] == ["api.key"]


def test_a_link_in_place_of_the_key_file_is_not_followed(world: World, tmp_path: Path) -> None:
    target = tmp_path / "target"
    key, _ = making.create_key(world.deps, world.user)
    target.write_text(key)
    target.chmod(0o600)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "api.key").symlink_to(target)
    assert keep(world, folder) != key
    assert target.read_text() == key
    assert not (folder / "api.key").is_symlink()


def test_many_at_once_keep_keys_that_work(world: World, tmp_path: Path) -> None:
    kept: list[str] = []
    threads = [
        threading.Thread(target=lambda: kept.append(keep(world, tmp_path))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with world.deps.db.begin() as tx:
        assert all(accounts.find_key(tx, key) for key in kept)
    assert keep(world, tmp_path) in kept
    assert "api.key" in {each.name for each in tmp_path.iterdir()}
    assert not list(tmp_path.glob("api.key.*"))


def test_our_own_fault_is_told_without_its_trace(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    router = APIRouter()

    @router.get("/broken")
    def broken() -> None:
        raise RuntimeError("a secret of the house")

    with served(create_app(api.deps, threads=2, others=[router])) as address:
        client = api.with_header(None)
        response = client.get(f"{address}/broken")
        assert response.status_code == 500
        assert response.json() == {
            "message": "something went wrong here; it is in the log",
            "severity": "error",
            "field": "",
        }
        assert response.headers["x-content-type-options"] == "nosniff"
        assert client.get(f"{address}/broken").status_code == 500, "it goes on"
    assert "RuntimeError: a secret of the house" in caplog.text


def test_a_full_disk_is_told_as_what_it_is_and_logged(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    router = APIRouter()

    @router.get("/full")
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a path of the house")

    with served(create_app(api.deps, threads=2, others=[router])) as address:
        response = api.with_header(None).get(f"{address}/full")
    assert response.status_code == 507
    assert "no room" in response.json()["message"]
    assert "a path of the house" not in response.text
    assert "No space left on device" in caplog.text


def test_what_is_no_route_or_no_method_of_one_is_told_in_the_same_shape(api: Api) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/datasets/", 404),
        ("PATCH", "/datasets", 405),
        ("GET", "/../../etc/passwd", 404),
    ):
        response = api.me.request(method, path)
        assert response.status_code == status
        assert response.json().keys() == {"message", "severity", "field"}
        assert response.headers["x-content-type-options"] == "nosniff"
    assert api.me.patch("/datasets").headers["allow"]


def test_requests_wait_until_the_database_was_seen(api: Api) -> None:
    is_open = [False]
    app = create_app(api.deps, threads=2, is_open=lambda: is_open[0])
    with served(app) as address:
        ask = f"{address}/api/v1/datasets"
        refused = api.me.get(ask)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        is_open[0] = True
        assert api.me.get(ask).status_code == 200


def test_the_published_schema_names_every_error(api: Api) -> None:
    schema = api.with_header(None).get("/openapi.json").json()
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            told = about["responses"].keys()
            if path.endswith(("/register", "/login")):
                assert {"400", "413", "422", "429", "503"} <= told
                assert "security" not in about
                continue
            assert {"401", "403", "503"} <= told, (method, path)
            assert "404" in told or "{" not in path, (method, path)
            assert about["security"] == [{"key": []}, {"older": []}], (method, path)
            if method in {"post", "put"} and "requestBody" in about:
                assert {"400", "413", "422"} <= told, (method, path)


def test_the_command_line_makes_accounts_and_reads_passwords_from_standard_input(
    world: World, database_url: str, tmp_path: Path
) -> None:
    def run(*arguments: str, stdin: str = "", code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "ppworker", *arguments],
            env=os.environ
            | {"PPWORKER_DATABASE_URL": database_url, "PPWORKER_DATA_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            input=stdin,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def let_in(password: str) -> bool:
        try:
            logins.log_in(world.deps, "anna", password, address="10.0.0.1")
        except Unauthenticated:
            return False
        return True

    email = ("--email", "anna@example.org")
    told = run("users", "create", "anna", *email, "--password", stdin="first one\r\nmore\n")
    assert let_in("first one")
    assert "password: has 1 to 256" in run("users", "password", "anna", stdin="\n", code=2)
    told += run("users", "password", "anna", stdin="second one")
    assert not let_in("first one")
    assert let_in("second one")
    assert "one" not in told
    assert "--email" in run("users", "create", "bob", "--email", "ANNA@example.org", code=2)
