from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duologue.chat.line_editor import KeyParser, LineEditor, Outcome


def typed(data: str, editor: LineEditor | None = None) -> LineEditor:
    editor = editor or LineEditor()
    for value, is_key in KeyParser().feed(data):
        if is_key:
            editor.press(value)
        else:
            editor.insert(value)
    return editor


@pytest.mark.parametrize(
    ("data", "text", "cursor"),
    [
        ("hello", "hello", 5),
        ("hello\x7f\x7f", "hel", 3),
        ("ac\x1b[Db", "abc", 2),
        ("bc\x01a", "abc", 1),
        ("ab\x1b[H\x1b[3~", "b", 0),
        ("one two\x17", "one ", 4),
        ("one two \x17", "one ", 4),
        ("one two\x15", "", 0),
        ("one two\x1bb\x0b", "one ", 4),
        ("one two\x01\x1bf\x0b", "one", 3),
        ("one\ntwo", "one\ntwo", 7),
        ("\x1b[200~a\r\nb\x1b[31m\x1b[201~c", "a\nb[31mc", 8),
        ("\x1b[15~x\x1bOPy", "xy", 2),
        ("\x7f\x1b[D\x1b[C\x1b[3~", "", 0),
        ("grüße 😀", "grüße 😀", 7),
    ],
)
def test_keys_edit_the_line(data: str, text: str, cursor: int) -> None:
    editor = typed(data)
    assert (editor.text, editor.cursor) == (text, cursor)


def test_enter_submits_and_ctrl_d_ends_an_empty_line_only() -> None:
    editor = LineEditor()
    assert editor.press("enter") is Outcome.SUBMITTED
    assert editor.press("end-of-input") is Outcome.ENDED
    editor = typed("ab\x01\x04")
    assert editor.text == "b"


def test_history_is_recalled_and_the_draft_comes_back() -> None:
    editor = LineEditor()
    for line in ("one", "two", "two", " "):
        typed(line, editor)
        assert editor.take() == line
    typed("draft", editor)
    editor.press("up")
    assert editor.text == "two"
    editor.press("up")
    editor.press("up")
    assert editor.text == "one"
    editor.press("down")
    editor.press("down")
    editor.press("down")
    assert editor.text == "draft"


@given(data=st.text(st.sampled_from("ab é\x1b[]ODA~0123;\r\n\x7f\x04\x17"), max_size=40), cut=st.integers(0, 40))
def test_input_cut_anywhere_gives_the_same_keys(data: str, cut: int) -> None:
    whole = KeyParser()
    parts = KeyParser()
    expected = "".join(f"<{value}>" if is_key else value for value, is_key in whole.feed(data))
    keys = [*parts.feed(data[:cut]), *parts.feed(data[cut:])]
    assert "".join(f"<{value}>" if is_key else value for value, is_key in keys) == expected
