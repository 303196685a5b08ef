"""Accounts over HTTP: who is let in, how often they may try, what a key is for, what is shared."""

import json
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
import sqlalchemy as sa
from argon2 import PasswordHasher

from api_server import Api, new_user, served
from api_shapes import Optional, Stamp, fits
from factories import World
from ppworker.api.app import create_app
from ppworker.errors import TooMany, Unauthenticated
from ppworker.pipeline.control import operations
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.setup import accounts as making
from ppworker.pipeline.setup import logins, passwords
from ppworker.pipeline.setup.accounts import Person
from ppworker.settings import Settings
from ppworker.store import accounts, attempts

LOGIN = dict.fromkeys(("id", "username", "email", "name", "firstname", "apikey"), str)
KEY = {
    "id": str, "created_at": Stamp, "updated_at": Stamp, "user_id": str,
    "organization_id": Optional(str), "name": str, "key_prefix": str, "scopes": [str],
    "last_used_at": Optional(Stamp), "expires_at": Optional(Stamp), "disabled": bool,
}  # fmt: skip
SHARE = {
    "id": str, "created_at": Stamp, "updated_at": Stamp, "name": str, "description": str,
    "email": str, "entity_type": str, "entity_id": str, "without_invite": bool, "role_id": str,
    "user_id": str,
}  # fmt: skip
SHARED_WITH = {
    "user_id": str, "username": str, "email": str, "role": str, "created_at": Stamp,
    "updated_at": Stamp,
}  # fmt: skip
PASSWORD = "correct horse"
DEAR = (passwords._HASHER, passwords._NOBODYS)

pytestmark = pytest.mark.usefixtures("cheap")


def person(who: str = "anna", **others: Any) -> dict[str, Any]:
    return {
        "username": who, "email": f"{who}@example.org", "name": "Ash", "firstname": "A",
        "password": PASSWORD,
    } | others  # fmt: skip


def post(client: httpx2.Client, path: str, body: Any) -> httpx2.Response:
    """As the contract's own client does: JSON without a content type."""
    return client.post(path, content=json.dumps(body))


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that cost next to nothing: how many are made is the question, not how long."""
    hasher = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
    monkeypatch.setattr(passwords, "_HASHER", hasher)
    monkeypatch.setattr(passwords, "_NOBODYS", hasher.hash("nobody's"))


@pytest.fixture
def dear(cheap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes as they are outside of tests."""
    monkeypatch.setattr(passwords, "_HASHER", DEAR[0])
    monkeypatch.setattr(passwords, "_NOBODYS", DEAR[1])


@pytest.fixture
def nobody(api: Api) -> httpx2.Client:
    return api.with_header(None)


def registered(api: Api, name: str = "anna", **others: Any) -> dict[str, Any]:
    response = post(api.with_header(None), "/register", person(name, **others))
    assert response.status_code == 200, response.text
    made: dict[str, Any] = response.json()
    return made


def log_in(api: Api, name: str = "anna", password: str = PASSWORD) -> httpx2.Response:
    return post(api.with_header(None), "/login", {"username": name, "password": password})


def bearer(api: Api, key: str) -> httpx2.Client:
    return api.with_header(f"Bearer {key}")


def test_from_registration_to_the_end_of_the_account(api: Api, nobody: httpx2.Client) -> None:
    made = registered(api)
    fits(made, LOGIN)
    assert "message" not in made, "the contract's client takes it for a failure"
    let_in = log_in(api)
    assert let_in.status_code == 200
    fits(let_in.json(), LOGIN)
    assert {**let_in.json(), "apikey": ""} == {**made, "apikey": ""}
    again = log_in(api).json()
    assert len({made["apikey"], let_in.json()["apikey"], again["apikey"]}) == 3
    me = bearer(api, again["apikey"])
    assert me.get("/me/context").json() == {
        "user_id": made["id"], "username": "anna", "scopes": [], "organizations": [],
        "roles": [], "permissions": [],
    }  # fmt: skip
    key = me.post("/me/apikeys", json={"name": "k"}).json()["key"]
    assert me.post("/logout").json() == {"ended": True}
    assert me.get("/me/context").status_code == 401
    assert me.post("/logout").status_code == 401
    by_key = bearer(api, key)
    assert by_key.post("/logout").json() == {"ended": False}
    assert by_key.get("/datasets").status_code == 200, "logout ends no key that a person made"
    assert bearer(api, made["apikey"]).get("/datasets").status_code == 200, "nor other logins"
    assert by_key.delete(f"/users/{made['id']}").status_code == 204
    assert by_key.get("/datasets").status_code == 401
    assert bearer(api, made["apikey"]).get("/datasets").status_code == 401
    assert log_in(api).status_code == 401
    assert registered(api)["id"] != made["id"], "name and address are free again"


def test_a_session_ends_by_itself_and_old_ones_are_cleared_away(api: Api) -> None:
    made = registered(api)
    ((days,),) = api.world.sql(
        "SELECT round(extract(epoch FROM expires_at - now()) / 86400) FROM api_keys "
        "WHERE kind = 'session'"
    )
    assert days == api.deps.settings.session_days
    api.world.sql("UPDATE api_keys SET expires_at = now() WHERE kind = 'session'")
    assert bearer(api, made["apikey"]).get("/datasets").status_code == 401
    fresh = bearer(api, log_in(api).json()["apikey"])
    assert api.world.sql("SELECT count(*) FROM api_keys WHERE kind = 'session'") == [(1,)]
    assert fresh.get("/me/apikeys").json() == [], "logins are not shown as keys"


BAD_REGISTRATIONS = [
    (person(username=None), "username"),
    (person(username="a:b"), "username"),
    (person(username="a\0b"), "username"),
    (person(username="  "), "username"),
    (person(username="x" * 201), "username"),
    (person(email="nobody"), "email"),
    (person(email="a@b\r\nBcc: c@d"), "email"),
    (person(email=""), "email"),
    (person(firstname="a\x1b[2J"), "firstname"),
    (person(name="x" * 201), "name"),
    (person(password=""), "password"),
    (person(password="ä" * 600), "password"),
    (person(password="\ud800"), "password"),
    (person(password="x" * 257), "password"),
    (person(password=5), "password"),
    ({}, "username"),
    ([1], ""),
]


def test_a_bad_registration_is_refused_by_its_field(api: Api, nobody: httpx2.Client) -> None:
    for body, field in BAD_REGISTRATIONS:
        response = post(nobody, "/register", body)
        assert response.status_code == 422, response.text
        told = response.json()
        assert told.keys() == {"message", "severity", "field", "registration"}
        assert told["field"] == field
        assert told["registration"] is None or told["registration"]["password"] == ""
        assert PASSWORD not in response.text
    unreadable = nobody.post("/register", content="{")
    assert (unreadable.status_code, unreadable.json()["registration"]) == (400, None)
    long = nobody.post("/register", content="{" + " " * 70_000)
    assert (long.status_code, long.json()["registration"]) == (413, None)
    assert api.world.sql("SELECT 1 FROM users WHERE password_hash IS NOT NULL") == []


def test_names_and_addresses_are_taken_once_however_they_are_written(
    api: Api, nobody: httpx2.Client
) -> None:
    registered(api, "zoë")
    for body, field in (
        (person("zoe\u0308", email="other@example.org"), "username"),
        (person(" zoë ", email="other@example.org"), "username"),
        (person("other", email="ZOË@EXAMPLE.ORG".replace("Ë", "ë")), "email"),
    ):
        response = post(nobody, "/register", body)
        assert response.status_code == 409
        assert response.json()["field"] == field
        assert response.json()["registration"]["username"] == body["username"]
    assert log_in(api, "zoe\u0308").status_code == 200
    assert log_in(api, "Zoë").status_code == 401, "names differ by case"


def test_of_many_registrations_at_once_one_wins(api: Api) -> None:
    def one(number: int) -> int:
        email = f"{number}@example.org" if number % 2 else "Same@example.org"
        name = "anna" if number % 2 else f"other-{number}"
        return post(api.with_header(None), "/register", person(name, email=email)).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(one, range(8))) == [200, 200, *[409] * 6]


def test_a_closed_door_makes_no_account(api: Api) -> None:
    closed = replace(
        api.deps, settings=api.deps.settings.model_copy(update={"registration": "closed"})
    )
    with served(create_app(closed, threads=2)) as address:
        response = post(api.with_header(None), f"{address}/api/v1/register", person())
        assert response.status_code == 403
        assert "registration is closed" in response.json()["message"]
        assert response.json()["registration"]["email"] == "anna@example.org"
    assert Settings.model_fields["registration"].default == "closed", "unless somebody opens it"
    assert api.world.sql("SELECT 1 FROM users WHERE username = 'anna'") == []
    making.create_user(closed, Person(username="anna"), password=PASSWORD)
    assert log_in(api).status_code == 200


@pytest.mark.usefixtures("dear")
def test_a_wrong_login_says_nothing_of_why(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    registered(api)
    new_user(api.deps, "keys-only")
    counted: list[str] = []
    real = passwords._HASHER.verify

    class Counting:
        def verify(self, stored: str, password: str) -> bool:
            counted.append(stored.rpartition("$")[0].rpartition("$")[0])
            return real(stored, password)

        def check_needs_rehash(self, stored: str) -> bool:
            return False

        def hash(self, password: str) -> str:
            raise AssertionError("a failed login hashes no more than it compares")

    monkeypatch.setattr(passwords, "_HASHER", Counting())
    answers = [
        log_in(api, name, "wrong")
        for name in ("anna", "nobody", "keys-only", "a\0b", "a:b", "x" * 1000, "")
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].headers["www-authenticate"] == "Bearer"
    # The same work for each, by the same parameters: who is there cannot be told from the time.
    assert counted == ["$argon2id$v=19$m=65536,t=2,p=1"] * len(answers)
    assert log_in(api, "anna", "").status_code == 422
    assert log_in(api, "\ud800", "x").status_code == 422
    assert log_in(api, "anna", "x" * 257).status_code == 422
    assert len(counted) == len(answers), "what no password can be is not hashed"


def test_a_login_reads_as_much_of_nobody_as_of_somebody(api: Api) -> None:
    registered(api)
    counts = []
    for name in ("anna", "nobody"):
        said: list[str] = []

        def note(*parts: Any, said: list[str] = said) -> None:
            said.append(parts[2].split()[0])

        sa.event.listen(api.deps.db.engine, "before_cursor_execute", note)
        assert log_in(api, name, "wrong").status_code == 401
        sa.event.remove(api.deps.db.engine, "before_cursor_execute", note)
        counts.append(said)
    assert counts[0] == counts[1]


@pytest.mark.usefixtures("dear")
def test_hashes_are_made_anew_when_their_parameters_are_old(api: Api) -> None:
    made = registered(api)
    old = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
    api.world.sql("UPDATE users SET password_hash = :h WHERE id = :i", h=old, i=UUID(made["id"]))
    assert log_in(api).status_code == 200
    ((stored,),) = api.world.sql(
        "SELECT password_hash FROM users WHERE id = :i", i=UUID(made["id"])
    )
    assert stored.startswith("$argon2id$v=19$m=65536,t=2,p=1$")
    assert log_in(api).status_code == 200
    api.world.sql("UPDATE users SET password_hash = 'broken' WHERE id = :i", i=UUID(made["id"]))
    assert log_in(api).status_code == 401


def test_another_password_ends_logins_and_spares_keys(api: Api) -> None:
    made = registered(api)
    session = bearer(api, made["apikey"])
    key = bearer(api, session.post("/me/apikeys", json={}).json()["key"])
    making.set_password(api.deps, UUID(made["id"]), "e\u0301tude")
    assert session.get("/datasets").status_code == 401
    assert key.get("/datasets").status_code == 200
    assert log_in(api).status_code == 401
    assert log_in(api, "anna", "étude").status_code == 200, "however a keyboard composes it"


def limited(deps: Any, **limits: Any) -> Any:
    return replace(deps, settings=deps.settings.model_copy(update=limits))


def outcomes(work: Callable[[int], object], times: int) -> list[str]:
    """What became of a call in so many threads at once."""
    gate = threading.Barrier(times)

    def one(number: int) -> str:
        gate.wait()
        try:
            work(number)
        except (TooMany, Unauthenticated) as error:
            return type(error).__name__
        return "in"

    with ThreadPoolExecutor(times) as pool:
        return sorted(pool.map(one, range(times)))


def test_failures_of_a_name_are_counted_exactly(world: World) -> None:
    deps = limited(world.deps, login_failures=7, address_failures=1000)
    making.create_user(deps, Person(username="anna"), password=PASSWORD)

    def guess(number: int) -> None:
        # The same name, however it is written, from other addresses.
        logins.log_in(deps, ("anna", " anna ")[number % 2], "wrong", address=f"10.0.0.{number}")

    assert outcomes(guess, 20) == ["TooMany"] * 13 + ["Unauthenticated"] * 7
    with pytest.raises(TooMany) as caught:
        logins.log_in(deps, "anna", PASSWORD, address="10.1.0.1")
    assert 1 <= caught.value.retry_after_s <= 900
    world.sql("UPDATE login_attempts SET window_ends_at = now()")
    logins.log_in(deps, "anna", PASSWORD, address="10.1.0.1")
    assert world.sql("SELECT count(*) FROM login_attempts WHERE failures > 0") == [(0,)]


def test_failures_from_an_address_are_counted_exactly(world: World) -> None:
    deps = limited(world.deps, login_failures=3, address_failures=8)
    making.create_user(deps, Person(username="anna"), password=PASSWORD)

    def guess(number: int) -> None:
        logins.log_in(deps, f"user-{number}", "wrong", address=f"2001:db8::{number:x}")

    assert outcomes(guess, 20) == ["TooMany"] * 12 + ["Unauthenticated"] * 8, "one /64 is one"
    for address in ("2001:db8::ffff", "2001:0db8:0:0:1::"):
        with pytest.raises(TooMany):
            logins.log_in(deps, "anna", PASSWORD, address=address)
    logins.log_in(deps, "anna", PASSWORD, address="2001:db8:1::1")
    # A right password gives its own attempt back, and no other.
    for _ in range(9):
        logins.log_in(deps, "anna", PASSWORD, address="10.0.0.1")
    assert outcomes(lambda n: logins.log_in(deps, f"x{n}", "no", address="::ffff:10.0.0.1"), 9) == [
        "TooMany", *["Unauthenticated"] * 8
    ]  # fmt: skip
    logins.log_in(deps, "anna", PASSWORD, address="x" * 70_000 + "\0")


def test_right_passwords_are_never_refused_for_their_number(world: World) -> None:
    deps = limited(world.deps, login_failures=20, address_failures=20)
    making.create_user(deps, Person(username="anna"), password=PASSWORD)
    for _ in range(3):
        assert outcomes(
            lambda _: logins.log_in(deps, "anna", PASSWORD, address="10.0.0.1"), 20
        ) == ["in"] * 20  # fmt: skip
    assert world.sql("SELECT count(*) FROM api_keys WHERE kind = 'session'") == [(60,)]
    assert world.sql("SELECT coalesce(sum(failures), 0) FROM login_attempts") == [(0,)]


def test_registrations_from_an_address_are_counted_exactly(world: World) -> None:
    deps = limited(world.deps, address_failures=5)

    def register(number: int) -> None:
        wanted = Person(username=f"user-{number}", email=f"{number}@example.org")
        logins.register(deps, wanted, PASSWORD, address="10.0.0.1")

    assert outcomes(register, 12) == ["TooMany"] * 7 + ["in"] * 5


def test_what_is_counted_is_cleared_away_later_and_names_nobody(world: World) -> None:
    deps = world.deps
    with pytest.raises(Unauthenticated):
        logins.log_in(deps, "hunter2", "x", address="10.0.0.1")
    rows = world.sql("SELECT subject FROM login_attempts")
    assert len(rows) == 2
    assert "hunter2" not in str(rows), "people type passwords in the wrong place"
    world.sql("UPDATE login_attempts SET window_ends_at = now()")
    with deps.db.begin() as tx:
        attempts.prune(tx)
    assert world.sql("SELECT 1 FROM login_attempts") == []


def test_too_many_are_told_when_to_come_back(api: Api) -> None:
    deps = limited(api.deps, login_failures=1)
    with served(create_app(deps, threads=4)) as address:
        client = api.with_header(None)
        ask = {"username": "anna", "password": "x"}
        assert post(client, f"{address}/api/v1/login", ask).status_code == 401
        refused = post(client, f"{address}/api/v1/login", ask)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 900
        assert refused.json().keys() == {"message", "severity", "field"}
        assert api.me.get(f"{address}/api/v1/datasets").status_code == 200, "keys go on"


def test_what_a_key_may_and_may_not(api: Api) -> None:
    """Every kind of key against every kind of route, in both forms of the header."""
    made = registered(api)
    user = UUID(made["id"])
    client = api.with_header(None)
    kinds: dict[str, tuple[dict[str, Any], set[str]]] = {
        "all": ({}, {"read", "write"}),
        "both": ({"scopes": ["read", "write"]}, {"read", "write"}),
        "reader": ({"scopes": ["read"]}, {"read"}),
        "writer": ({"scopes": ["write"]}, {"write"}),
        "expired": ({"expires_days": 1}, set()),
        "disabled": ({}, set()),
        "gone": ({}, set()),
    }
    routes = [
        ("read", "GET", "/datasets", None, 200),
        ("read", "GET", "/me/context", None, 200),
        ("read", "GET", "/me/apikeys", None, 200),
        ("read", "GET", f"/datasets/{uuid4()}", None, 404),
        ("write", "POST", "/me/apikeys", {"scopes": ["write"]}, 200),
        ("write", "PUT", f"/me/apikeys/{uuid4()}", None, 404),
        ("write", "DELETE", f"/me/apikeys/{uuid4()}", None, 404),
        ("write", "DELETE", f"/users/{uuid4()}", None, 404),
        ("write", "POST", f"/datasets/{uuid4()}/share", {"email": "a@b"}, 404),
        ("write", "POST", "/logout", None, 200),
    ]
    for kind, (options, allowed) in kinds.items():
        key, shown = making.create_key(api.deps, user, **options)
        spoil = {
            "expired": "UPDATE api_keys SET expires_at = now() WHERE id = :i",
            "disabled": "UPDATE api_keys SET disabled = true WHERE id = :i",
            "gone": "DELETE FROM api_keys WHERE id = :i",
        }
        if kind in spoil:
            api.world.sql(spoil[kind], i=shown.id)
        for header in (f"Bearer {key}", f"anna:{key}"):
            for scope, method, path, body, status in routes if allowed else routes[:5]:
                response = client.request(
                    method, path, json=body, headers={"authorization": header}
                )
                wanted = status if scope in allowed else 403 if allowed else 401
                assert response.status_code == wanted, (kind, header, method, path, response.text)
                if wanted == 401:
                    assert response.headers["www-authenticate"] == "Bearer"
                assert key not in response.text


def test_keys_are_made_shown_disabled_and_deleted(api: Api) -> None:
    mine = bearer(api, registered(api)["apikey"])
    other = bearer(api, registered(api, "bob")["apikey"])
    made = post(
        mine, "/me/apikeys",
        {"name": "nightly", "scopes": [], "organization_id": None, "expires_in_days": None},
    ).json()  # fmt: skip
    fits(made, {**KEY, "key": str})
    assert made["key_prefix"] == made["key"][:8]
    ((stored,),) = api.world.sql("SELECT key_sha256 FROM api_keys WHERE id = :i", i=made["id"])
    days = post(mine, "/me/apikeys", {"expires_in_days": 1, "scopes": ["read"]}).json()
    assert days["expires_at"] is not None
    assert days["scopes"] == ["read"]
    listed = mine.get("/me/apikeys")
    assert [each["id"] for each in listed.json()] == [made["id"], days["id"]]
    fits(listed.json(), [KEY])
    assert made["key"] not in listed.text
    assert stored not in listed.text
    path = f"/me/apikeys/{made['id']}"
    for method in ("PUT", "DELETE"):
        for strange in (path, f"/me/apikeys/{uuid4()}", "/me/apikeys/x"):
            assert other.request(method, strange).status_code == 404
    by_key = bearer(api, made["key"])
    assert by_key.get("/datasets").status_code == 200
    shut = mine.put(path)
    fits(shut.json(), KEY)
    assert shut.json()["disabled"] is True
    assert by_key.get("/datasets").status_code == 401
    assert mine.put(path).json()["disabled"] is False
    assert by_key.get("/datasets").status_code == 200
    assert by_key.delete(path).status_code == 204, "a key may end itself"
    assert mine.delete(path).status_code == 404
    ((session,),) = api.world.sql(
        "SELECT id FROM api_keys WHERE kind = 'session' AND user_id = :u", u=UUID(made["user_id"])
    )
    assert mine.delete(f"/me/apikeys/{session}").status_code == 404, "a login is no key"
    for body, field in (
        ({"scopes": ["admin"]}, "scopes[0]"),
        ({"scopes": "read"}, "scopes"),
        ({"expires_in_days": 0}, "expires_in_days"),
        ({"expires_in_days": 10**9}, "expires_in_days"),
        ({"expires_in_days": True}, "expires_in_days"),
        ({"name": "a\n"}, "name"),
    ):
        refused = post(mine, "/me/apikeys", body)
        assert (refused.status_code, refused.json()["field"]) == (422, field)


def test_no_key_makes_one_that_may_do_more(api: Api) -> None:
    user = UUID(registered(api)["id"])
    writer = api.client(user, scopes=["write"])
    for wider in (["read"], ["read", "write"]):
        refused = post(writer, "/me/apikeys", {"scopes": wider})
        assert (refused.status_code, refused.json()["field"]) == (403, "scopes")
    assert post(writer, "/me/apikeys", {"scopes": []}).json()["scopes"] == ["write"]


def raw_status(api: Api, header: bytes) -> int:
    """Status of a request with these very bytes in its header, whatever a client would refuse."""
    host, _, port = api.address.rpartition("//")[2].partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            b"GET /api/v1/datasets HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: "
            + header
            + b"\r\n\r\n"
        )
        return int(connection.recv(4096).split(b" ")[1])


def test_strange_headers_let_nobody_in(api: Api) -> None:
    user = UUID(registered(api, "zoë")["id"])
    key, _ = making.create_key(api.deps, user)

    good = key.encode()
    for header, expected in {
        "zoë".encode() + b":" + good: 200,
        "zoë".encode("latin-1") + b":" + good: 200,
        "zoe\u0308".encode() + b":" + good: 200,
        b"zoe:" + good: 401,
        b"\xff\xfe:" + good: 401,
        b":" + good: 401,
        b"zo\xc3\xab:zo\xc3\xab:" + good: 401,
        b"Bearer " + good + b"\t": 200,
        b"Bearer " + good + b" x": 401,
        b"Bearer " + good + b"," + good: 401,
        b"Bearer Bearer " + good: 401,
        b"Basic " + good: 401,
        b"Bearer " + good.upper(): 401,
        b"Bearer " + good[:-1]: 401,
        b"Bearer " + "\uff50".encode() + good[1:]: 401,
        b"Bearer ' OR 1=1 --": 401,
        b"Bearer " + b"x" * 40_000: 401,
        b"x" * 40_000 + b":" + good: 401,
        b"Bearer " + good + b"\r\nX-Other: y": 200,
        b"Bearer no\r\nAuthorization: Bearer " + good: 401,
        b"Bearer " + good + b"\0": 400,
    }.items():
        assert raw_status(api, header) == expected, header[:60]


def test_no_secret_is_answered_logged_or_told(
    api: Api, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("sqlalchemy.engine").setLevel(logging.NOTSET)
    secrets = {PASSWORD, "another wrong guess"}
    answers = []
    made = registered(api)
    session = made["apikey"]
    client = bearer(api, session)
    key = client.post("/me/apikeys", json={}).json()["key"]
    secrets |= {session, key}
    answers += [
        post(api.with_header(None), "/register", person()),
        post(api.with_header(None), "/register", person("x", email="no")),
        log_in(api, "anna", "another wrong guess"),
        log_in(api, "anna\0", "another wrong guess"),
        api.with_header(f"Bearer {key}x").get("/datasets"),
        api.with_header(f"bob:{key}").get("/datasets"),
        client.get("/me/apikeys"),
        client.get("/me/context"),
    ]
    # A fault of ours in the middle of a statement that holds the hash.
    real = accounts.create_user

    def broken(tx: Any, *_: Any, **values: Any) -> Any:
        tx.execute(sa.text("SELECT :hash, nothing FROM users"), {"hash": values["password_hash"]})
        return real

    monkeypatch.setattr(accounts, "create_user", broken)
    answers.append(post(api.with_header(None), "/register", person("carl")))
    assert answers[-1].status_code == 500
    assert "failed" in caplog.text, "it was logged"
    hashes = [row[0] for row in api.world.sql("SELECT key_sha256 FROM api_keys")]
    logged = "".join(
        f"{record.getMessage()}{record.exc_text}"
        for record in caplog.records
        if not record.name.startswith(("httpcore2", "httpx2"))  # this test's own client
    )
    assert "nothing FROM users" in logged
    told = logged + "".join(f"{each.text}{each.headers}" for each in answers[:-2])
    told += answers[-1].text
    assert [secret for secret in (*secrets, *hashes) if secret in told] == []
    assert "$argon2" not in told


def test_many_may_log_in_at_once_and_keep_no_thread_from_others(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    making.create_user(api.deps, Person(username="anna"), password=PASSWORD)
    gate, inside, most = threading.Event(), [0], [0]
    lock = threading.Lock()
    real = passwords.fits

    def slow(stored: str | None, password: str) -> bool:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        gate.wait(30)
        with lock:
            inside[0] -= 1
        return real(stored, password)

    monkeypatch.setattr(passwords, "fits", slow)
    with ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(log_in, api) for _ in range(20)]
        while not inside[0]:
            gate.wait(0.01)
        assert api.me.get("/datasets").status_code == 200
        gate.set()
        assert [each.result().status_code for each in waiting] == [200] * 20
    assert most[0] == 2, "64 MiB each: no more at a time"


# --- shares


@pytest.fixture
def people(api: Api) -> dict[str, httpx2.Client]:
    """Clients of the owner of the world's dataset, of who reads it, writes it, and of a stranger."""
    found = {"owner": api.me}
    api.world.sql("UPDATE users SET email = 'owner@example.org' WHERE id = :i", i=api.world.user)
    for role in ("reader", "writer", "stranger"):
        user = making.create_user(
            api.deps, Person(username=role, email=f"{role.title()}@example.org")
        )
        found[role] = api.client(user.id)
        if role != "stranger":
            body = {
                "email": f"{role}@EXAMPLE.org", "entity_type": "datasets",
                "entity_id": str(api.world.dataset.id), "without_invite": True, "role_id": role,
            }  # fmt: skip
            response = post(api.me, f"{api.dataset}/share", body)
            assert response.status_code == 200, response.text
            fits(response.json(), SHARE)
            assert {**response.json(), **body} == response.json(), "answers the same"
    return found


def test_who_may_do_what_with_a_shared_dataset(api: Api, people: dict[str, httpx2.Client]) -> None:
    item = api.item()
    processor = f"{api.dataset}/post-processors"
    made = api.me.post(processor, json={"name": "own", "model_type": "ner"}).json()["id"]
    read = {
        f"GET {path}"
        for path in (
            api.dataset, f"{api.dataset}/versions", api.version, f"{api.version}/splits",
            f"{api.version}/labels", f"{api.version}/labels/splits/{api.world.train.id}",
            f"{api.version}/items", item, f"{item}/jobs", processor, f"{processor}/{made}",
            f"{processor}/jobs",
        )
    }  # fmt: skip
    write = {
        f"POST {api.version}/items": {"text": "x"},
        f"POST {processor}": {"name": "p", "model_type": "ner"},
        f"PUT {processor}/{made}": {"name": "own"},
        f"POST {api.split}/add_inferences": {"inferences": []},
        f"POST {item}/jobs/{uuid4()}/retry": None,
        f"DELETE {processor}/{uuid4()}": None,
    }
    own = {
        f"POST {api.dataset}/share": {"email": "nobody@example.org"},
        f"GET {api.dataset}/shares": None,
        f"DELETE {api.dataset}/shares/{uuid4()}": None,
    }
    there = {"add_inferences": 200, "retry": 404, "share": 422}
    for ask, body in [*((ask, None) for ask in read), *write.items(), *own.items()]:
        method, path = ask.split(" ")
        ok = there.get(path.rpartition("/")[2], 404 if method == "DELETE" else 200)
        for who, client in people.items():
            may = who in {"owner", "writer"} or (who == "reader" and ask in read)
            if ask in own:
                may = who == "owner"
            wanted = 404 if who == "stranger" else ok if may else 403
            sent: Any = body
            if ask == f"POST {processor}":
                sent = {"name": f"p-{who}", "model_type": "ner"}
            response = client.request(method, path, json=sent)
            assert response.status_code == wanted, (who, ask, response.text)
            if wanted == 403:
                assert "ask its owner" in response.json()["message"]


def test_what_is_made_in_a_shared_dataset_is_its_owners(
    api: Api, people: dict[str, httpx2.Client]
) -> None:
    owner = str(api.world.user)
    writer = people["writer"]
    made = writer.post(f"{api.version}/items", json={"text": "x"}).json()
    assert made["user_id"] == owner
    processor = writer.post(
        f"{api.dataset}/post-processors", json={"name": "p", "model_type": "ner"}
    ).json()
    assert processor["user_id"] == owner
    added = writer.post(
        f"{api.split}/add_inferences", json={"inferences": [{"id": "i1", "name": "a text"}]}
    )
    assert added.status_code == 200
    ((operation,),) = api.world.sql("SELECT id FROM operations")
    assert api.world.sql("SELECT DISTINCT user_id::text FROM dataset_items") == [(owner,)]
    assert api.world.sql("SELECT user_id::text FROM operations") == [(owner,)]
    for who, status in (("owner", 200), ("writer", 200), ("reader", 200), ("stranger", 404)):
        assert people[who].get(f"/operations/{operation}").status_code == status
    lines = json.dumps({"text": "of many"})
    many = writer.post(
        f"{api.version}/items/bulk", content=lines, headers={"Content-Type": "application/x-ndjson"}
    )
    assert many.status_code == 200, many.text
    ((mine,),) = api.world.sql(
        "SELECT o.id FROM operations o JOIN users u ON u.id = o.user_id "
        "WHERE u.username = 'writer' AND o.kind = 'import_items'"
    )
    for who, status in (("owner", 200), ("writer", 200), ("reader", 200), ("stranger", 404)):
        assert people[who].get(f"/operations/{mine}").status_code == status
    api.world.check()


def test_lists_hold_what_is_shared_and_say_so(api: Api, people: dict[str, httpx2.Client]) -> None:
    def listed(who: str) -> list[tuple[bool, str, str]]:
        return [
            (each["shared_with_me"], each["share_role"], each["user_id"])
            for each in people[who].get("/datasets").json()
        ]

    owner = str(api.world.user)
    assert listed("owner") == [(False, "", owner)]
    assert listed("reader") == [(True, "reader", owner)]
    assert listed("writer") == [(True, "writer", owner)]
    assert listed("stranger") == []
    people["reader"].post("/datasets", json={"name": "own", "content_type": "text"})
    assert [shared for shared, _, _ in listed("reader")] == [False, True]


def test_a_share_is_changed_and_ended_at_once(api: Api, people: dict[str, httpx2.Client]) -> None:
    listed = api.me.get(f"{api.dataset}/shares").json()
    fits(listed, [SHARED_WITH])
    assert [(each["username"], each["role"]) for each in listed] == [
        ("reader", "reader"), ("writer", "writer")
    ]  # fmt: skip
    reader = people["reader"]
    ask = {"email": "reader@example.org", "role_id": "editor"}
    assert post(api.me, f"{api.dataset}/share", ask).json()["role_id"] == "writer"
    assert reader.post(f"{api.version}/items", json={"text": "x"}).status_code == 200
    for role in (None, "", "viewer"):
        answer = post(api.me, f"{api.dataset}/share", ask | {"role_id": role})
        assert answer.json()["role_id"] == "reader"
    assert reader.post(f"{api.version}/items", json={"text": "x"}).status_code == 403
    gone = f"{api.dataset}/shares/{listed[0]['user_id']}"
    assert api.me.delete(gone).status_code == 204
    assert reader.get(api.dataset).status_code == 404
    assert api.me.delete(gone).status_code == 404


def test_a_share_that_makes_no_sense_is_refused_by_its_field(
    api: Api, people: dict[str, httpx2.Client], worlds: Callable[..., World]
) -> None:
    other = worlds(username="reader")
    good = {"email": "stranger@example.org", "entity_type": "datasets"}
    for body, field in (
        ({}, "email"),
        ({"email": ""}, "email"),
        ({"email": "nobody@example.org"}, "email"),
        ({"email": "no\0body@example.org"}, "email"),
        ({"email": "owner@example.org"}, "email"),
        (good | {"entity_type": "models"}, "entity_type"),
        (good | {"entity_id": str(other.dataset.id)}, "entity_id"),
        (good | {"entity_id": "x"}, "entity_id"),
        (good | {"role_id": "admin"}, "role_id"),
        (good | {"role_id": "owner"}, "role_id"),
    ):
        response = post(api.me, f"{api.dataset}/share", body)
        assert (response.status_code, response.json()["field"]) == (422, field), body
    assert api.world.sql("SELECT count(*) FROM shares") == [(2,)]


# --- the end of an account


def test_who_ends_an_account_with_live_jobs_leaves_nothing_that_runs(
    api: Api, people: dict[str, httpx2.Client], worlds: Callable[..., World]
) -> None:
    world = api.world
    processor = world.processor()
    world.add("a", "b", "c")
    batch = world.claim(processor, limit=1)
    mine = worlds(username="mine")
    with world.deps.db.begin() as tx:
        from ppworker.store import shares

        shares.put_share(tx, mine.dataset.id, world.user, "writer")
    assert people["stranger"].delete(f"/users/{world.user}").status_code == 404
    assert api.me.delete(f"/users/{world.user}").status_code == 204
    assert api.me.get("/datasets").status_code == 401
    for who in ("reader", "writer"):
        assert people[who].get("/datasets").json() == []
        assert people[who].get(api.dataset).status_code == 404
        assert people[who].get(f"{api.version}/items").status_code == 404
    assert world.sql("SELECT count(*) FROM shares") == [(0,)]
    assert world.sql("SELECT count(*) FROM api_keys WHERE user_id = :i", i=world.user) == [(0,)]
    ((name, email, deleted),) = world.sql(
        "SELECT username, email, deleted_at IS NOT NULL FROM users WHERE id = :i", i=world.user
    )
    assert (name, email, deleted) == (f"deleted:{world.user}", "", True)
    assert not world.claim(processor).jobs, "what waited runs no more"
    world.run(processor, batch=batch)  # what ran comes to its end, and is dropped
    done = operations.run(world.deps, STEPS)
    assert done is not None
    assert (done.kind, done.status) == ("delete", "completed")
    assert world.sql("SELECT count(*) FROM dataset_items WHERE user_id = :i", i=world.user) == [
        (0,)
    ]
    assert world.sql(
        "SELECT count(*) FROM post_processor_jobs WHERE status IN ('pending', 'processing')"
    ) == [(0,)]
    world.check()


def test_an_account_ends_once(world: World) -> None:
    from ppworker.errors import NotFound
    from ppworker.pipeline.setup import closing

    def end(_: int) -> None:
        try:
            closing.delete_user(world.deps, world.user)
        except NotFound:
            raise Unauthenticated("gone") from None

    assert outcomes(end, 6) == ["Unauthenticated"] * 5 + ["in"]
    with pytest.raises(NotFound):
        making.set_password(world.deps, world.user, "x")
