"""A real PostgreSQL for every test above unit: one server per run, one cloned database per test."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from hypothesis import settings as hypothesis_settings

from promises import promise  # noqa: F401  a fixture of every test

if TYPE_CHECKING:  # imported where they are used: unit tests need none of it, and start sooner
    from factories import World
    from ppworker.domain.events import Event
    from ppworker.pipeline.deps import Deps
    from ppworker.store.db import Database

# Few examples keep the unit tests quick at every save; CI and `make properties` try many.
hypothesis_settings.register_profile("quick", max_examples=20, deadline=None)
hypothesis_settings.register_profile("thorough", max_examples=500, deadline=None)
hypothesis_settings.load_profile(os.environ.get("PPWORKER_TEST_PROFILE", "quick"))

# Whoever runs the tests in the background has them ignore Ctrl-C and hang-ups, and every process
# they start with them; the programs under test are started as from a terminal.
for _signal in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, signal.default_int_handler)

for _name in [name for name in os.environ if name.startswith("PPWORKER_")]:
    if not _name.startswith("PPWORKER_TEST_"):
        del os.environ[_name]  # a developer's shell must not change results


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only root can do when nobody is root: it is no test of an ordinary user."""
    if os.geteuid() == 0:
        return
    left_out = [item for item in items if item.get_closest_marker("as_root")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """URL of a running server's maintenance database; PPWORKER_TEST_DATABASE_URL if that is set."""
    if given := os.environ.get("PPWORKER_TEST_DATABASE_URL"):
        yield given
        return
    from ppworker import embedded

    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"{os.getpid()}")
    folder = Path(tempfile.gettempdir()) / f"ppworker-tests-{os.getuid()}-{run}"
    with embedded.acquire(folder) as servers:
        # Only the tests' own throw-away server: durability has its own tests, on its own servers.
        execute(servers.database_url, "ALTER SYSTEM SET fsync = off")
        execute(servers.database_url, "SELECT pg_reload_conf()")
        yield servers.database_url
    if not embedded_in_use(folder):
        shutil.rmtree(folder, ignore_errors=True)


def embedded_in_use(folder: Path) -> bool:
    """Whether another process of this run still uses the server in the folder."""
    return any(folder.rglob("postmaster.pid"))


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """Name of a migrated database that tests clone."""
    from ppworker.store import schema
    from ppworker.store.db import Database

    name = f"template_{uuid4().hex[:12]}"
    execute(server_url, f"CREATE DATABASE {name}")
    db = Database(on(server_url, name), connections=1)
    schema.migrate(db)
    db.close()
    yield name
    execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def fresh_database(server_url: str, template: str) -> Iterator[str]:
    """URL of a new migrated database, which is gone afterwards."""
    name = f"test_{uuid4().hex[:12]}"
    execute(server_url, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY wal_log")
    yield on(server_url, name)
    execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_url(server_url: str, template: str) -> Iterator[str]:
    """URL of this test's own database."""
    with fresh_database(server_url, template) as url:
        yield url


@pytest.fixture(scope="module")
def module_deps(
    server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[Deps]":
    """The pipeline's collaborators on one database for all tests of a module."""
    from ppworker import settings, wiring
    from ppworker.store.db import Database

    with fresh_database(server_url, template) as url:
        database = Database(url, connections=12)
        folder = tmp_path_factory.mktemp("module") / "data"
        given = settings.load(database_url=url, data_dir=folder, registration="open")
        yield wiring.build_deps(given, database, emit=lambda _: None)
        database.close()


@pytest.fixture
def db(database_url: str) -> Iterator["Database"]:
    """This test's own database, empty, with several connections."""
    from ppworker.store.db import Database

    database = Database(database_url, connections=12)
    yield database
    database.close()


@pytest.fixture
def events() -> "list[Event]":
    """Facts that the code under test told."""
    return []


@pytest.fixture
def deps(db: "Database", database_url: str, events: "list[Event]", tmp_path: Path) -> "Deps":
    """The pipeline's collaborators on this test's database, telling their facts to ``events``."""
    from ppworker import settings, wiring

    given = settings.load(
        database_url=database_url, data_dir=tmp_path / "data", registration="open"
    )
    return wiring.build_deps(given, db, emit=events.extend)


@pytest.fixture
def world(deps: "Deps") -> "World":
    """A user with a dataset, and short words for what tests do with it."""
    from factories import World

    return World(deps)


@pytest.fixture
def worlds(deps: "Deps") -> "Callable[..., World]":
    """Makes further worlds in the same database."""
    from factories import World

    return lambda **options: World(deps, **options)


def on(url: str, database: str) -> str:
    """The URL with another database name."""
    import sqlalchemy as sa

    return sa.make_url(url).set(database=database).render_as_string(hide_password=False)


def execute(url: str, statement: str) -> None:
    """Run one statement outside a transaction."""
    import sqlalchemy as sa

    engine = sa.create_engine(
        sa.make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(sa.text(statement))
    engine.dispose()
