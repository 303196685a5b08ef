"""Alembic's entry: runs inside the transaction that ``schema.migrate`` hands over."""

from alembic import context

from ppworker.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
