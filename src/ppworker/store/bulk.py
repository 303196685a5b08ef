"""Inserts many rows by one statement, whatever their number."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from ppworker.store.db import Tx

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped


def insert(
    tx: Tx,
    table: sa.Table,
    columns: tuple[str, ...],
    rows: Sequence[Sequence[Any]],
    *,
    after: str = "",
) -> int:
    """Insert ``rows`` (each in the order of ``columns``) through one ``unnest``.

    JSON columns take JSON text. ``after`` is SQL behind the rows, such as ``ON CONFLICT ...``.
    Returns the number of rows written. With no rows the statement still runs, so that a batch
    costs the same number of statements whatever is in it.
    """
    arrays = {f"p{i}": [row[i] for row in rows] for i in range(len(columns))}
    return tx.execute(_statement(table, columns, after), arrays).rowcount


@lru_cache(maxsize=64)
def _statement(table: sa.Table, columns: tuple[str, ...], after: str) -> sa.TextClause:
    names, arrays, values = [], [], []
    for i, column in enumerate(columns):
        kind = table.c[column].type
        sql_type = kind.compile(dialect=_DIALECT)
        carried = "TEXT" if isinstance(kind, postgresql.JSONB) else sql_type
        names.append(f'"{column}"')
        arrays.append(f"CAST(:p{i} AS {carried}[])")
        values.append(f"CAST(u.c{i} AS {sql_type})" if carried != sql_type else f"u.c{i}")
    aliases = ", ".join(f"c{i}" for i in range(len(columns)))
    return sa.text(
        f'INSERT INTO {table.name} ({", ".join(names)}) '  # noqa: S608  names come from tables.py
        f'SELECT {", ".join(values)} FROM unnest({", ".join(arrays)}) AS u({aliases}) {after}'
    )
