"""Settings come from the environment; a mistake names the variable and never shows the value."""

import pytest

from ppworker import settings
from ppworker.errors import ConfigurationError
from ppworker.store.db import Database


def test_defaults_hold_with_nothing_set() -> None:
    given = settings.load()
    assert given.database_url is None
    assert (given.processes, given.threads) == (2, 2)
    assert given.connections == given.threads + 6


def test_the_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPWORKER_THREADS", "7")
    monkeypatch.setenv("PPWORKER_LEASE_S", "12.5")
    assert settings.load().threads == 7
    assert settings.load(threads=3).threads == 3
    assert settings.load(threads=None).lease_s == 12.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PPWORKER_THREADS", "many"),
        ("PPWORKER_LEASE_S", "-1"),
        ("PPWORKER_LOG_LEVEL", "loud"),
        ("PPWORKER_LOG_FORMAT", "xml"),
        ("PPWORKER_DATA_DIR", ""),  # not the working directory
    ],
)
def test_a_mistake_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name):
        settings.load()


def test_a_secret_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPWORKER_DATABASE_URL", "postgresql://joe:hunter2@db/x")
    assert "hunter2" not in repr(settings.load())


@pytest.mark.parametrize(
    "url", ["postgresql://joe:hun@ter2@db/x", "postgresql://joe:h/ter2@db:y/x"]
)
def test_a_password_that_breaks_the_url_is_never_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match="write @ as %40") as caught:
        Database(url)  # the driver's error would name host 'ter2@db'
    assert "ter2" not in str(caught.value)
