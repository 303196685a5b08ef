"""Accounts over HTTP: who is let in, how often they may try, what a key is for, what is shared."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from api_server import Api, Optional, Stamp, fits, new_user, served, served_api
from factories import World
from ppworker.api.app import create_app
from ppworker.errors import Forbidden, Invalid, TooMany, Unauthenticated
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


def person(who: str = "anna", **others: Any) -> dict[str, Any]:
    return {
        "username": who, "email": f"{who}@example.org", "name": "Ash", "firstname": "A",
        "password": PASSWORD,
    } | others  # fmt: skip


def post(client: httpx2.Client, path: str, body: Any) -> httpx2.Response:
    """As the contract's own client does: JSON without a content type."""
    return client.post(path, content=json.dumps(body))


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
    (person(password="a\0b"), "password"),
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
    closed = replace(api.deps, settings=api.deps.settings.model_copy(update={"registration": "closed"}))
    with served(create_app(closed, threads=2)) as address:
        response = post(api.with_header(None), f"{address}/api/v1/register", person())
        assert response.status_code == 403
        assert "registration is closed" in response.json()["message"]
        assert response.json()["registration"]["email"] == "anna@example.org"
    assert Settings.model_fields["registration"].default == "closed", "unless somebody opens it"
    assert api.world.sql("SELECT 1 FROM users WHERE username = 'anna'") == []
    making.create_user(closed, Person(username="anna"), password=PASSWORD)
    assert log_in(api).status_code == 200


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
    assert log_in(api, "anna", "x" * 1025).status_code == 422
    assert len(counted) == len(answers), "what no password can be is not hashed"


def test_a_login_reads_as_much_of_nobody_as_of_somebody(api: Api, recorded: Any = None) -> None:
    registered(api)
    counts = []
    for name in ("anna", "nobody"):
        said: list[str] = []
        import sqlalchemy as sa

        def note(*parts: Any, said: list[str] = said) -> None:
            said.append(parts[2].split()[0])

        sa.event.listen(api.deps.db.engine, "before_cursor_execute", note)
        assert log_in(api, name, "wrong").status_code == 401
        sa.event.remove(api.deps.db.engine, "before_cursor_execute", note)
        counts.append(said)
    assert counts[0] == counts[1]


def test_hashes_are_made_anew_when_their_parameters_are_old(api: Api) -> None:
    from argon2 import PasswordHasher

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


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that cost next to nothing: how many are made is the question, not how long."""
    from argon2 import PasswordHasher

    hasher = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
    monkeypatch.setattr(passwords, "_HASHER", hasher)
    monkeypatch.setattr(passwords, "_NOBODYS", hasher.hash("nobody's"))


@pytest.mark.usefixtures("cheap")
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


@pytest.mark.usefixtures("cheap")
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


@pytest.mark.usefixtures("cheap")
def test_right_passwords_are_never_refused_for_their_number(world: World) -> None:
    deps = limited(world.deps, login_failures=20, address_failures=20)
    making.create_user(deps, Person(username="anna"), password=PASSWORD)
    for _ in range(3):
        assert outcomes(
            lambda _: logins.log_in(deps, "anna", PASSWORD, address="10.0.0.1"), 20
        ) == ["in"] * 20  # fmt: skip
    assert world.sql("SELECT count(*) FROM api_keys WHERE kind = 'session'") == [(60,)]
    assert world.sql("SELECT coalesce(sum(failures), 0) FROM login_attempts") == [(0,)]


@pytest.mark.usefixtures("cheap")
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
