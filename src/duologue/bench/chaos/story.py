"""What the scripted model says: text that can be told from any other, made anew from a marker and a number."""

from __future__ import annotations

import hashlib
import re
from typing import Final, NamedTuple

_MARKER: Final = re.compile(r"\[(?P<marker>[a-z0-9.-]{1,48})\]")
_TITLE: Final = re.compile(r"\[(?P<marker>[a-z0-9.-]{1,48})#(?P<number>[0-9]{1,12})\] ")
_WORD_CHARACTERS: Final = 6


class Title(NamedTuple):
    """What a reply is: the answer to the message with a marker, and which of the model's answers."""

    marker: str
    number: int


def question(marker: str) -> str:
    """Return what a user says to be answered by that marker."""
    return f"[{marker}] And what came then?"


def marker_of(said: str) -> str:
    """Return the marker in what a user said, empty if there is none."""
    found = _MARKER.search(said)
    return found["marker"] if found else ""


def story(marker: str, number: int, words: int) -> list[str]:
    """Return the answer in pieces: a title, then so many words that follow from it, no two answers alike."""
    seed = f"{marker}#{number}".encode()
    return [f"[{marker}#{number}] ", *(_word(seed, place) for place in range(words))]


def title_of(text: str) -> Title | None:
    """Return which answer a text is, None if it does not begin like one."""
    found = _TITLE.match(text)
    return Title(found["marker"], int(found["number"])) if found else None


def _word(seed: bytes, place: int) -> str:
    return hashlib.blake2s(b"%b %d" % (seed, place)).hexdigest()[:_WORD_CHARACTERS] + " "
