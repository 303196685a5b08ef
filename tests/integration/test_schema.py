"""Migrations build exactly the schema on the page, and other schemas are refused with the remedy."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from ppworker.errors import ConfigurationError, StoreRefused, StoreUnavailable
from ppworker.store import schema
from ppworker.store.db import Database
from ppworker.store.tables import metadata


def test_migrations_and_tables_agree(db: Database) -> None:
    with db.begin() as tx:
        context = MigrationContext.configure(
            tx, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []


def test_the_program_knows_its_newest_migration() -> None:
    found = sorted(path.name[:4] for path in Path(schema.__file__).parent.rglob("versions/0*.py"))
    assert found[-1] == schema.REVISION


def test_check_constraints_of_tables_exist_in_the_database(db: Database) -> None:
    """Alembic does not compare them by itself."""
    with db.begin() as tx:
        found = set(
            tx.execute(sa.text("SELECT conname FROM pg_constraint WHERE contype = 'c'")).scalars()
        )
    wanted = {
        str(constraint.name)
        for table in metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, sa.CheckConstraint)
    }
    assert wanted <= found


def test_migrating_again_changes_nothing(db: Database) -> None:
    assert schema.migrate(db) == schema.migrate(db)
    schema.check(db)


def test_an_older_or_missing_schema_names_the_command(db: Database) -> None:
    with db.begin() as tx:
        tx.execute(sa.text("DELETE FROM alembic_version"))
    with pytest.raises(ConfigurationError, match="ppworker migrate"):
        schema.check(db)


def test_a_newer_schema_asks_for_a_newer_program(db: Database) -> None:
    with db.begin() as tx:
        tx.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="upgrade ppworker"):
        schema.check(db)


def test_what_postgresql_refuses_and_what_is_away_have_names(db: Database) -> None:
    with pytest.raises(StoreRefused), db.begin() as tx:
        tx.execute(sa.text("INSERT INTO blobs (sha256, size_bytes) VALUES ('short', 1)"))
    with pytest.raises(StoreUnavailable), db.begin() as tx:
        tx.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
    with db.begin() as tx:
        assert tx.execute(sa.text("SELECT 1")).scalar_one() == 1, "the pool heals by itself"


def test_an_unreachable_server_is_away_and_its_password_is_not_shown() -> None:
    db = Database("postgresql://joe:hunter2@127.0.0.1:1/none")
    with pytest.raises(StoreUnavailable) as caught, db.begin():
        pass
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["nonsense", "mysql://x/y", "sqlite:///x"])
def test_a_url_that_is_not_postgresql_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="PPWORKER_DATABASE_URL"):
        Database(url)
