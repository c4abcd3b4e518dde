"""How dead letters look."""

from __future__ import annotations

import re
import sys
from base64 import b64encode
from typing import Any

import pytest

from duologue.dlq.tables import harmless, show_letter, show_list


def _letter(**fields: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "id": "0197a3c2-5a10-7c31-9d1e-0d6f5f1f9a01",
        "state": "open",
        "topic": "incoming_messages",
        "partition": 3,
        "offset": 42,
        "key": "[bold]c-1[/bold]",
        "size": 2000,
        "error": "the provider\nis \x1b[31munwell",
        "cause": "http_503",
        "tries": 7,
        "first_at": "2026-01-05T12:00:00.000Z",
        "last_at": "2026-01-05T12:00:58.120Z",
        "userid": "ada",
        "message_id": None,
        "headers": {"na\x07me": "\x1b]0;title\x07"},
        "value": b64encode(bytes(range(256)) * 8).decode(),
        "json": None,
    }
    return known | fields


def _on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is captured pass for a terminal."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")


def _plain(text: str) -> str:
    """Return text without colours and weights."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_list_on_a_terminal_is_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _on_a_terminal(monkeypatch)
    show_list([_letter(), _letter(userid=None)])
    head, first, *_ = _plain(capsys.readouterr().out).splitlines()
    assert head.split()[:4] == ["id", "state", "last_at", "record"]
    assert first.split()[0] == "0197a3c2-5a10-7c31-9d1e-0d6f5f1f9a01"


def test_list_of_nothing_on_a_terminal_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _on_a_terminal(monkeypatch)
    show_list([])
    assert _plain(capsys.readouterr().out) == "No dead letters.\n"


def test_list_in_a_pipe_is_one_line_a_letter(capsys: pytest.CaptureFixture[str]) -> None:
    show_list([_letter()])
    [line] = capsys.readouterr().out.splitlines()
    assert line.split("\t")[3:] == [
        "incoming_messages/3/42",
        "http_503",
        "7",
        "ada",
        "the provider is \ufffd[31munwell",
    ]


def test_letter_shown_obeys_nothing_that_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    show_letter(_letter())
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]c-1[/bold]" in text
    assert "00000010  10 11 12" in text
    assert "… 2000 bytes in all" in text


def test_letter_with_json_nested_deep_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    show_letter(_letter(json=[1, {"a": "b\ud800"}]))
    assert '"a": "b\ufffd"' in capsys.readouterr().out
    show_letter(_letter(json=deep))
    assert "nested" in capsys.readouterr().out


def test_harmless_text_stays_as_it_is() -> None:
    assert harmless("Füße 🦊 <b>") == "Füße 🦊 <b>"
