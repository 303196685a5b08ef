"""The URL of the database: one host or several, and never a password in an error."""

import pytest

from ppworker.errors import ConfigurationError
from ppworker.store.connections import address


@pytest.mark.parametrize(
    ("url", "hosts", "ports"),
    [
        ("postgresql://u:p@db/name", "db", None),
        ("postgresql://u:p@db:6432/name", "db", "6432"),
        ("postgres://u:p@a:5432,b:5433/name", "a,b", "5432,5433"),
        ("postgresql://u:p@a,b/name?port=6000", "a,b", "6000,6000"),
        ("postgresql://u:p@/name?host=a,b&port=1,2", "a,b", "1,2"),
        ("postgresql://u:p@[::1]:5/name", "::1", "5"),
        ("postgresql+psycopg://u:p@/name?host=%2Frun%2Fx&port=5432", "/run/x", "5432"),
    ],
)
def test_a_url_of_libpq_is_understood(url: str, hosts: str, ports: str | None) -> None:
    found = address(url)
    assert (found.query["host"], found.query.get("port")) == (hosts, ports)
    assert (found.username, found.password, found.database) == ("u", "p", "name")
    assert address(found.render_as_string(hide_password=False)) == found


def test_of_several_hosts_the_writable_one_is_wanted_unless_the_url_says_otherwise() -> None:
    assert address("postgresql://a,b/x").query["target_session_attrs"] == "read-write"
    asked = "postgresql://a,b/x?target_session_attrs=any"
    assert address(asked).query["target_session_attrs"] == "any"
    assert "target_session_attrs" not in address("postgresql://a/x").query


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://joe:hun@ter2@db/x",
        "postgresql://joe:h/ter2@db:y/x",
        "postgresql://joe@a:1,b:ter2/x",
        "postgresql://joe@db/x?secret=ter2",
        "postgresql://joe@a,b/x?port=1,2,3",
        "postgresql://joe:%zzter2@db/x",
    ],
)
def test_what_cannot_be_read_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError, match="write @ as %40") as caught:
        address(url)
    assert "ter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
