"""PostgreSQL's plans, as EXPLAIN tells them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection


def plan_nodes(conn: Connection, text: str, values: Sequence[Any], *options: str) -> list[dict[str, Any]]:
    """Return the nodes of a statement's plan, each before those below it. `options`: of EXPLAIN, as ANALYZE."""
    wanted = ", ".join([*options, "FORMAT JSON"])
    (told,) = conn.exec_driver_sql(f"EXPLAIN ({wanted}) {text}", tuple(values)).scalars()
    (root,) = told if isinstance(told, list) else json.loads(told)
    return list(_flat(root["Plan"]))


def _flat(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _flat(child)
