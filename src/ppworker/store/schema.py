"""Brings the schema to the version this program knows, and refuses any other."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from ppworker.errors import ConfigurationError
from ppworker.store.db import Database

OLDEST_POSTGRESQL = 150_000
_LOCK = "ppworker.migrate"


def migrate(db: Database) -> str:
    """Apply every missing migration, one process at a time; returns the revision reached.

    Raises:
        ConfigurationError: the schema is newer than this program.
    """
    config = _config()
    with db.begin() as tx:
        tx.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:k, 0))"), {"k": _LOCK})
        found = MigrationContext.configure(tx).get_current_revision()
        if found is not None and found not in _known():
            raise _newer(found)
        config.attributes["connection"] = tx
        command.upgrade(config, "head")
    return head()


def check(db: Database) -> None:
    """Make sure that server and schema are ones this program knows.

    Raises:
        ConfigurationError: the server is too old, or the schema is older or newer.
        StoreUnavailable: the server does not answer.
    """
    with db.begin() as tx:
        server = int(tx.execute(sa.text("SHOW server_version_num")).scalar_one())
        found = MigrationContext.configure(tx).get_current_revision()
    if server < OLDEST_POSTGRESQL:
        raise ConfigurationError(
            f"PPWORKER_DATABASE_URL: PostgreSQL {server // 10_000} is too old; use 15 or newer"
        )
    if found == head():
        return
    if found is None or found in _known():
        raise ConfigurationError(
            f"the schema is at revision {found or 'none'}, this program needs {head()}; "
            "run `ppworker migrate`"
        )
    raise _newer(found)


def _newer(found: str) -> ConfigurationError:
    return ConfigurationError(
        f"the schema is at revision {found}, which is newer than this program; "
        "upgrade ppworker on this machine"
    )


def _known() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def head() -> str:
    """The revision that this program knows."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    return str(head)
