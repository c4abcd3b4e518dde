"""How dead letters look: a table on a terminal, tab-separated lines in a pipe."""

from __future__ import annotations

import json
import sys
from base64 import b64decode
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from duologue.dlq.client import Letter

_SHOWN_BYTES: Final = 512
_COLUMNS: Final = ("id", "state", "last_at", "record", "cause", "tries", "userid", "error")
_DETAILS: Final = (
    *("id", "state", "handled_at", "handled_by", "topic", "partition", "offset", "key", "size"),
    *("error", "cause", "tries", "first_at", "last_at"),
    *("tenant", "userid", "conversation_id", "message_id", "attempt"),
)


def show_list(letters: Sequence[Letter]) -> None:
    """Print letters."""
    rows = [[_cell(letter, name) for name in _COLUMNS] for letter in letters]
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))  # noqa: T201
        return
    table = Table(box=None, header_style="bold")
    for name in _COLUMNS:
        table.add_column(name, no_wrap=name in {"id", "state"}, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table if rows else Text("No dead letters.", style="dim"))


def show_letter(letter: Letter) -> None:
    """Print a letter with what its record holds."""
    fields = {name: _cell(letter, name) for name in _DETAILS if letter.get(name) is not None}
    fields |= {f"header {name}": value for name, value in sorted(letter["headers"].items())}
    width = max(map(len, fields))
    console = Console(highlight=False, soft_wrap=True)
    for name, text in fields.items():
        console.print(Text.assemble((f"{harmless(name):<{width}}  ", "dim"), harmless(text)))
    console.print()
    console.print(Text(_content(letter)))


def harmless(text: str) -> str:
    """Return text without what a terminal would obey: a record may hold anything."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _cell(letter: Letter, name: str) -> str:
    if name == "record":
        return f"{letter['topic']}/{letter['partition']}/{letter['offset']}"
    value = letter.get(name)
    return "" if value is None else harmless(" ".join(str(value).split()))


def _content(letter: Letter) -> str:
    if letter["json"] is not None:
        return "\n".join(map(harmless, _indented(letter["json"]).splitlines()))
    value = b64decode(letter["value"])
    lines = [_hex_line(at, value[at : at + 16]) for at in range(0, min(len(value), _SHOWN_BYTES), 16)]
    if letter["size"] > _SHOWN_BYTES:
        lines.append(f"… {letter['size']} bytes in all")
    return "\n".join(lines)


def _indented(value: Any) -> str:
    try:
        return json.dumps(value, indent=2, ensure_ascii=False)
    except RecursionError:
        return "(JSON that is nested too deep to be shown)"


def _hex_line(at: int, piece: bytes) -> str:
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
    return f"{at:08x}  {piece.hex(' '):<47}  {text}"
