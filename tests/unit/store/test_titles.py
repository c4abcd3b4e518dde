"""Titles of conversations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duologue.store.messages import TITLE_CHARACTERS, title_of


@given(st.text())
def test_title_is_one_short_line(content: str) -> None:
    title = title_of(content)
    assert len(title) <= TITLE_CHARACTERS
    assert len(title.splitlines()) <= 1


@pytest.mark.parametrize(
    ("content", "title"),
    [
        ("Hello there", "Hello there"),
        ("  two\n\nlines\tand more ", "two lines and more"),
        ("word " * 40, "word word word word word word word word word word word…"),
        ("x" * 200, "x" * 59 + "…"),
    ],
)
def test_title_of_content_is_its_beginning(content: str, title: str) -> None:
    assert title_of(content) == title
