"""Where the two databases differ in their SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

_MIGRATION_LOCK: Final = 0x64756F6C6F677565
"""The key of the advisory lock: "duologue" in ASCII."""


def insert_missing(conn: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows that break no unique index; leave the others out."""
    if conn.dialect.name == "postgresql":
        conn.execute(postgresql.insert(table).on_conflict_do_nothing(), rows)
    else:
        conn.execute(sqlite.insert(table).on_conflict_do_nothing(), rows)


class _StoreClock(FunctionElement[int]):
    inherit_cache = True
    type = sa.BigInteger()


def store_clock(parameter: str = "now") -> sa.ColumnElement[int]:
    """Return the time by which machines agree, milliseconds since the Unix epoch: on PostgreSQL the server's clock; on
    SQLite, which has one machine, the parameter."""
    return _StoreClock(sa.bindparam(parameter, type_=sa.BigInteger))


@compiles(_StoreClock, "sqlite")
def _store_clock_sqlite(element: _StoreClock, compiler: SQLCompiler, **kwargs: Any) -> str:
    return compiler.process(element.clauses, **kwargs)


@compiles(_StoreClock, "postgresql")
def _store_clock_postgresql(_element: _StoreClock, _compiler: SQLCompiler, **_kwargs: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"


class _JsonRows(FunctionElement[Any]):
    inherit_cache = True
    type = sa.types.NullType()  # JSON as the driver gives it, for `read_json`


def json_rows(*columns: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return what aggregates rows into one JSON array with an array for each row, in no certain order: a list in one
    column of another row. Of no rows it is NULL on PostgreSQL and an empty array on SQLite."""
    return _JsonRows(*columns)


@compiles(_JsonRows, "sqlite")
def _json_rows_sqlite(element: _JsonRows, compiler: SQLCompiler, **kwargs: Any) -> str:
    return f"json_group_array(json_array({compiler.process(element.clauses, **kwargs)}))"


@compiles(_JsonRows, "postgresql")
def _json_rows_postgresql(element: _JsonRows, compiler: SQLCompiler, **kwargs: Any) -> str:
    return f"json_agg(json_build_array({compiler.process(element.clauses, **kwargs)}))"


def record_set(name: str, parameter: str, types: Mapping[str, sa.types.TypeEngine[Any]]) -> sa.FromClause:
    """Return a table of PostgreSQL that is made of a parameter: JSON text, an array with an object for each row. So
    one statement takes any number of rows.

    Args:
        name: of the table.
        parameter: the bound parameter's name.
        types: of its columns, by their names, which are the objects' fields.
    """
    rows = sa.cast(sa.bindparam(parameter, type_=sa.Text), postgresql.JSON)
    fields = [sa.column(field, each) for field, each in types.items()]
    return sa.func.json_to_recordset(rows).table_valued(*fields).render_derived(name=name, with_types=True)


def lock_migrations(conn: Connection) -> None:
    """Wait until no other process migrates this database, and keep others from it until the transaction ends. On SQLite
    a transaction that writes has the file for itself anyway."""
    if conn.dialect.name == "postgresql":
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))


def to_json(value: Any) -> str:
    """Return the text of a JSON column."""
    return msgspec.json.encode(value).decode()


def from_json(text: str | bytes) -> Any:
    """Read the text of a JSON column."""
    return msgspec.json.decode(text)


def read_json(value: Any) -> Any:
    """Read a JSON column as the driver gives it: text on SQLite, the value itself on PostgreSQL."""
    return from_json(value) if isinstance(value, (str, bytes)) else value
