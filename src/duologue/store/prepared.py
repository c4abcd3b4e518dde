"""Statements of the hot path, compiled once.

SQLAlchemy spends 60 to 100 µs on an execution of a statement of twenty parameters (looking up the compiled form,
processing parameters and rows), SQLite 5 to 20. A `Prepared` statement is written in the same language, for both
databases, keeps the text and the order of its parameters, and runs on the driver's own cursor, within the transaction
of the `Connection`. What comes back are plain tuples, and what is raised are the driver's own errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy import Connection, Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class TextList(sa.types.TypeDecorator[list[str]]):
    """A list of texts as one parameter: an array on PostgreSQL, JSON on SQLite, which has none."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[Any]:
        array: sa.types.TypeEngine[Any] = sa.ARRAY(sa.Text)
        return dialect.type_descriptor(array if dialect.name == "postgresql" else sa.JSON())


class _IsOneOf(FunctionElement[Any]):
    inherit_cache = True
    type = sa.types.NullType()  # a Boolean would become `… = 1` on SQLite


def is_one_of(column: sa.ColumnElement[str], parameter: str = "ids") -> sa.ColumnElement[Any]:
    """Tell whether a column is among the texts of a list parameter.

    Unlike `IN` with a parameter for each text it is one statement for lists of every length, which the database's
    driver therefore keeps prepared.
    """
    return _IsOneOf(column, sa.bindparam(parameter, type_=TextList))


@compiles(_IsOneOf, "sqlite")
def _is_one_of_sqlite(element: _IsOneOf, compiler: SQLCompiler, **kwargs: Any) -> str:
    column, parameter = (compiler.process(clause, **kwargs) for clause in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({parameter}))"  # noqa: S608 - the compiler quotes both


@compiles(_IsOneOf, "postgresql")
def _is_one_of_postgresql(element: _IsOneOf, compiler: SQLCompiler, **kwargs: Any) -> str:
    column, parameter = (compiler.process(clause, **kwargs) for clause in element.clauses)
    return f"{column} = ANY({parameter})"


class _Parameter(NamedTuple):
    name: str
    constant: Any
    processor: Callable[[Any], Any] | None


class _Plan:
    """A statement for one dialect: its text, and what each place in it takes."""

    def __init__(self, statement: sa.ClauseElement, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)  # noqa: S101 - it is no DDL
        self.text = str(compiled)
        assert "POSTCOMPILE" not in self.text  # noqa: S101 - `in_` with values is expanded at each execution
        constants = compiled.params
        self.parameters = [
            _Parameter(name, constants[name], compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in compiled.positiontup or ()
        ]

    def bind(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(
            [
                values.get(name, constant) if processor is None else processor(values.get(name, constant))
                for name, constant, processor in self.parameters
            ]
        )


class Prepared:
    """A statement with `bindparam`s, for every dialect that runs it. Its rows are tuples as the driver gives them:
    JSON comes as text, truth as a number on SQLite."""

    def __init__(self, statement: sa.ClauseElement) -> None:
        self._statement = statement
        self._plans: WeakKeyDictionary[Dialect, _Plan] = WeakKeyDictionary()  # an engine has its own dialect

    def rows(self, conn: Connection, values: Mapping[str, Any]) -> Sequence[Any]:
        """Run the statement and return its rows."""
        plan = self.plan(conn.dialect)
        with closing(conn.connection.cursor()) as cursor:
            cursor.execute(plan.text, plan.bind(values))
            return cursor.fetchall()

    def run(self, conn: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run the statement for each of `rows`, at least one."""
        plan = self.plan(conn.dialect)
        with closing(conn.connection.cursor()) as cursor:
            cursor.executemany(plan.text, [plan.bind(values) for values in rows])

    def plan(self, dialect: Dialect) -> _Plan:
        """Return the statement for a dialect."""
        plan = self._plans.get(dialect)
        if plan is None:
            plan = self._plans[dialect] = _Plan(self._statement, dialect)
        return plan
