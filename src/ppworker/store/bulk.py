"""Carries many rows in one statement, whatever their number.

Lists travel as PostgreSQL's own array literals, built here: psycopg adapts lists element by
element, which cost more than all the rest of a finish.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from ppworker.store.db import Tx

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped


def uuids(values: Iterable[UUID | None]) -> str:
    """Array literal, for ``CAST(:p AS uuid[])``."""
    return "{" + ",".join(["NULL" if v is None else v.hex for v in values]) + "}"


def in_order(ids: Iterable[UUID]) -> list[UUID]:
    """Each id once, ascending, as PostgreSQL orders them: the order in which rows are locked."""
    return sorted(set(ids), key=_NUMBER)


_NUMBER = attrgetter("int")


def texts(values: Iterable[str | None]) -> str:
    """Array literal of any type whose elements are given as text; each is quoted."""
    quoted = [
        "NULL" if v is None else '"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for v in values
    ]
    return "{" + ",".join(quoted) + "}"


def numbers(values: Iterable[float | None]) -> str:
    """Array literal of numbers or booleans."""
    return "{" + ",".join(["NULL" if v is None else str(v) for v in values]) + "}"


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
    statement, carriers = _statement(table, columns, after)
    by_column = zip(*rows, strict=True) if rows else [()] * len(columns)
    arrays = {
        f"p{i}": carry(values)
        for i, (carry, values) in enumerate(zip(carriers, by_column, strict=True))
    }
    return tx.execute(statement, arrays).rowcount


Carrier = Callable[[Iterable[Any]], Any]


def _carrier(kind: sa.types.TypeEngine[Any]) -> Carrier:
    if isinstance(kind, sa.Uuid):
        return uuids
    if isinstance(kind, sa.Text | postgresql.JSONB):
        return texts
    if isinstance(kind, sa.Integer | sa.Double | sa.Boolean):
        return numbers
    return list  # psycopg knows the rest


@lru_cache(maxsize=64)
def _statement(
    table: sa.Table, columns: tuple[str, ...], after: str
) -> tuple[sa.TextClause, list[Carrier]]:
    names, arrays, values, carriers = [], [], [], []
    for i, column in enumerate(columns):
        kind = table.c[column].type
        sql_type = kind.compile(dialect=_DIALECT)
        carried = "TEXT" if isinstance(kind, postgresql.JSONB) else sql_type
        names.append(f'"{column}"')
        arrays.append(f"CAST(:p{i} AS {carried}[])")
        values.append(f"CAST(u.c{i} AS {sql_type})" if carried != sql_type else f"u.c{i}")
        carriers.append(_carrier(kind))
    aliases = ", ".join(f"c{i}" for i in range(len(columns)))
    statement = sa.text(
        f"INSERT INTO {table.name} ({', '.join(names)}) "  # noqa: S608  names come from tables.py
        f"SELECT {', '.join(values)} FROM unnest({', '.join(arrays)}) AS u({aliases}) {after}"
    )
    return statement, carriers
