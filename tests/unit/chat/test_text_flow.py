from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from duologue.chat.text_flow import TextFlow, harmless


class Paper:
    """A terminal as far as `TextFlow` uses one: lines, a cursor, moving left and clearing to the end of the line."""

    def __init__(self) -> None:
        self.lines = [""]

    def write(self, text: str) -> None:
        for token in re.findall(r"\x1b\[\d*[DK]|.", text, re.DOTALL):
            if token == "\n":
                self.lines.append("")
            elif token.endswith("D") and token.startswith("\x1b"):
                self.lines[-1] = self.lines[-1][: -int(token[2:-1])]
            elif token != "\x1b[K":
                self.lines[-1] += token


def shown(pieces: list[str], width: int) -> list[str]:
    flow, paper = TextFlow(width), Paper()
    for piece in pieces:
        paper.write(flow.feed(piece))
    return paper.lines


def test_words_that_arrive_in_pieces_are_wrapped_whole() -> None:
    assert shown(["the quick br", "own fo", "x jumps"], 12) == ["the quick ", "brown fox ", "jumps"]


def test_word_longer_than_a_line_is_broken() -> None:
    assert shown(["a" * 25], 11) == ["a" * 10, "a" * 10, "a" * 5]


def test_newlines_are_kept() -> None:
    assert shown(["one\n\ntwo"], 20) == ["one", "", "two"]


def test_wide_characters_break_anywhere_and_count_twice() -> None:
    assert shown(["日本語日本語"], 11) == ["日本語日本", "語"]


def test_space_at_the_end_of_a_line_becomes_its_break() -> None:
    assert shown(["12345678 x"], 9) == ["12345678", "x"]


@given(pieces=st.lists(st.text(st.sampled_from("ab c\n日é"), max_size=8), max_size=20), width=st.integers(9, 30))
def test_no_line_is_wider_than_the_terminal_and_no_letter_is_lost(pieces: list[str], width: int) -> None:
    lines = shown(pieces, width)
    assert all(cell_len(line) < width for line in lines)
    assert "".join(lines).replace(" ", "") == "".join(pieces).replace(" ", "").replace("\n", "")


def test_finish_line_breaks_only_a_line_that_was_begun() -> None:
    flow = TextFlow(20)
    assert flow.finish_line() == ""
    flow.feed("x")
    assert flow.finish_line() == "\n"
    assert flow.at_line_start


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[2Jb", "a[2Jb"),
        ("a\x1b]52;c;aGk=\x07b", "a]52;c;aGk=b"),
        ("a\x9b31mb\r\nc", "a31mb\nc"),
        ("a\u202eb", "ab"),
        ("a\tb", "a    b"),
        ("grüße\n😀", "grüße\n😀"),
    ],
)
def test_harmless_text_obeys_nobody(text: str, expected: str) -> None:
    assert harmless(text) == expected
