"""Brings the schema to the version this program knows, and refuses any other."""

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ppworker.errors import ConfigurationError
from ppworker.store.db import Database, Tx

if TYPE_CHECKING:  # loaded only where it works: a worker would carry its ten megabytes all day
    from alembic.config import Config

REVISION = "0004"
"""The schema that this program knows: the newest migration."""
OLDEST_POSTGRESQL = 150_000
_LOCK = "ppworker.migrate"


def migrate(db: Database) -> str:
    """Apply every missing migration, one process at a time; returns the revision reached.

    Raises:
        ConfigurationError: the schema is newer than this program.
    """
    from alembic import command  # noqa: PLC0415  see above

    config = _config()
    with db.begin() as tx:
        tx.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:k, 0))"), {"k": _LOCK})
        found = _found(tx)
        if found is not None and found not in _known():
            raise _newer(found)
        config.attributes["connection"] = tx
        command.upgrade(config, REVISION)
    return REVISION


def check(db: Database, *, limit_s: float | None = None) -> None:
    """Make sure that server and schema are ones this program knows.

    Args:
        db: the database.
        limit_s: seconds that it may take.

    Raises:
        ConfigurationError: the server is too old, or the schema is older or newer.
        StoreUnavailable: the server does not answer, or not in time.
    """
    with db.begin(limit_s=limit_s) as tx:
        server = int(tx.execute(sa.text("SHOW server_version_num")).scalar_one())
        found = _found(tx)
    if server < OLDEST_POSTGRESQL:
        raise ConfigurationError(
            f"PPWORKER_DATABASE_URL: PostgreSQL {server // 10_000} is too old; use 15 or newer"
        )
    if found == REVISION:
        return
    if found is None or found in _known():
        raise ConfigurationError(
            f"the schema is at revision {found or 'none'}, this program needs {REVISION}; "
            "run `ppworker migrate`"
        )
    raise _newer(found)


def _newer(found: str) -> ConfigurationError:
    return ConfigurationError(
        f"the schema is at revision {found}, which is newer than this program; "
        "upgrade ppworker on this machine"
    )


def _found(tx: Tx) -> str | None:
    """The revision of the schema that is there."""
    if tx.execute(sa.text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
        return None
    return tx.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _known() -> set[str]:
    from alembic.script import ScriptDirectory  # noqa: PLC0415  see above

    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _config() -> "Config":
    from alembic.config import Config  # noqa: PLC0415  see above

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
