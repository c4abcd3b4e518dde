"""A page that is whole by itself, for reports: nothing is loaded from anywhere; readable in light and dark."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Final

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c1c1c; --faint: #767676; --line: #d8d8d8; --paper: #fff;
  --good: #177245; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --faint: #8f8f8f; --line: #3a3a3a; --paper: #141414;
  --good: #5fc08d; --bad: #ff8a80; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1440px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.good { color: var(--good); } .bad { color: var(--bad); } code { overflow-wrap: anywhere; }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: var(--faint); }
.grid { stroke: var(--line); }
"""


def document(title: str, style: str, parts: Iterable[str]) -> str:
    """Return a page of these parts under its title, with more rules of style."""
    return "".join(
        [
            "<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
            f"<title>{html.escape(title)}</title><style>{_STYLE}{style}</style>",
            f"<h1>{html.escape(title)}</h1>",
            *parts,
        ]
    )


def facts_table(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and what there is to say of each."""
    body = "".join(f"<tr><td>{html.escape(name)}<td>{html.escape(value)}" for name, value in rows)
    return f"<table>{body}</table>"


def number_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column has words and whose others have numbers."""
    first = f"<tr><th>{html.escape(head[0])}" + "".join(f"<th class=n>{html.escape(cell)}" for cell in head[1:])
    body = "".join(
        f"<tr><td>{html.escape(row[0])}" + "".join(f"<td class=n>{html.escape(cell)}" for cell in row[1:])
        for row in rows
    )
    return f"<table>{first}{body}</table>"
