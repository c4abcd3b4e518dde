"""Editing one line: keys in, the line and its cursor out. No I/O."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator
from typing import Final

_HISTORY_KEPT: Final = 200

ESCAPE: Final = "escape"
"""The name of Esc, pressed twice or followed by nothing."""


class Outcome(enum.Enum):
    """What a key brought about."""

    EDITED = "edited"
    SUBMITTED = "submitted"
    ENDED = "ended"


class LineEditor:
    """A line being written. `text` is the line, `cursor` an index into it."""

    def __init__(self) -> None:
        self.text = ""
        self.cursor = 0
        self._history: list[str] = []
        self._recalled = 0
        self._draft = ""
        self._actions: dict[str, Callable[[], None]] = {
            "left": lambda: self._move(self.cursor - 1),
            "right": lambda: self._move(self.cursor + 1),
            "word-left": lambda: self._move(self._word_start()),
            "word-right": lambda: self._move(self._word_end()),
            "home": lambda: self._move(0),
            "end": lambda: self._move(len(self.text)),
            "up": lambda: self._recall(-1),
            "down": lambda: self._recall(1),
            "backspace": lambda: self._cut(self.cursor - 1, self.cursor),
            "delete": lambda: self._cut(self.cursor, self.cursor + 1),
            "cut-word": lambda: self._cut(self._word_start(), self.cursor),
            "cut-start": lambda: self._cut(0, self.cursor),
            "cut-end": lambda: self._cut(self.cursor, len(self.text)),
            "newline": lambda: self.insert("\n"),
        }

    def insert(self, text: str) -> None:
        """Insert text at the cursor."""
        self.text = self.text[: self.cursor] + text + self.text[self.cursor :]
        self.cursor += len(text)

    def press(self, key: str) -> Outcome:
        """Take in a key by its name; names that are not known do nothing."""
        if key == "enter":
            return Outcome.SUBMITTED
        if key == "end-of-input":
            if not self.text:
                return Outcome.ENDED
            key = "delete"
        action = self._actions.get(key)
        if action is not None:
            action()
        return Outcome.EDITED

    def take(self) -> str:
        """Return the line and begin an empty one; it can be recalled later."""
        line = self.text
        if line.strip() and (not self._history or self._history[-1] != line):
            self._history = [*self._history, line][-_HISTORY_KEPT:]
        self.text, self.cursor, self._draft = "", 0, ""
        self._recalled = len(self._history)
        return line

    def _move(self, to: int) -> None:
        self.cursor = max(0, min(len(self.text), to))

    def _cut(self, start: int, end: int) -> None:
        start, end = max(0, start), min(len(self.text), end)
        self.text = self.text[:start] + self.text[end:]
        self.cursor = start

    def _word_start(self) -> int:
        words = list(re.finditer(r"\S+\s*$", self.text[: self.cursor]))
        return words[0].start() if words else 0

    def _word_end(self) -> int:
        word = re.match(r"\s*\S+", self.text[self.cursor :])
        return self.cursor + (word.end() if word else 0)

    def _recall(self, step: int) -> None:
        wanted = self._recalled + step
        if not 0 <= wanted <= len(self._history):
            return
        if self._recalled == len(self._history):
            self._draft = self.text
        self._recalled = wanted
        self.text = self._history[wanted] if wanted < len(self._history) else self._draft
        self.cursor = len(self.text)


_SEQUENCES: Final = {
    "\r": "enter",
    "\n": "newline",
    "\x1b\r": "newline",
    "\x1b\x1b": ESCAPE,
    "\x7f": "backspace",
    "\x08": "backspace",
    "\x01": "home",
    "\x02": "left",
    "\x04": "end-of-input",
    "\x05": "end",
    "\x06": "right",
    "\x0b": "cut-end",
    "\x0e": "down",
    "\x10": "up",
    "\x15": "cut-start",
    "\x17": "cut-word",
    "\x1b\x7f": "cut-word",
    "\x1bb": "word-left",
    "\x1bf": "word-right",
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1b[C": "right",
    "\x1b[D": "left",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1bOC": "right",
    "\x1bOD": "left",
    "\x1b[H": "home",
    "\x1b[F": "end",
    "\x1bOH": "home",
    "\x1bOF": "end",
    "\x1b[1~": "home",
    "\x1b[4~": "end",
    "\x1b[3~": "delete",
    "\x1b[1;5C": "word-right",
    "\x1b[1;5D": "word-left",
    "\x1b[1;3C": "word-right",
    "\x1b[1;3D": "word-left",
}
_PASTE_START: Final = "\x1b[200~"
_PASTE_END: Final = "\x1b[201~"
_TOKEN: Final = re.compile(
    r"\x1b\[200~.*?\x1b\[201~"  # a paste, as a whole
    r"|\x1b\[[0-9;?]*[ -/]*[@-~]|\x1bO.|\x1b[^\[O]"  # a key that sends a sequence
    r"|[\x00-\x1a\x1c-\x1f\x7f]"  # a control key
    r"|[^\x00-\x1f\x7f]+",  # text
    re.DOTALL,
)


class KeyParser:
    """Cuts what a terminal sends into text and named keys; what is cut off waits for its rest."""

    def __init__(self) -> None:
        self._pending = ""

    def feed(self, data: str) -> Iterator[tuple[str, bool]]:
        """Yield text with False, and the names of keys with True; sequences that are not known are left out."""
        self._pending += data
        while self._pending and not self._is_open_paste():
            token = _TOKEN.match(self._pending)
            if token is None:
                return
            self._pending = self._pending[token.end() :]
            yield from _meaning(token.group())

    @property
    def may_be_escape(self) -> bool:
        """Whether what came last is Esc itself, unless the rest of another key's sequence follows at once."""
        return self._pending == "\x1b"

    def drop_escape(self) -> None:
        """Take it that nothing follows: what comes next is a key of its own."""
        if self.may_be_escape:
            self._pending = ""

    def _is_open_paste(self) -> bool:
        return self._pending.startswith(_PASTE_START) and _PASTE_END not in self._pending


def _meaning(token: str) -> Iterator[tuple[str, bool]]:
    if token.startswith(_PASTE_START):
        pasted = token[len(_PASTE_START) : -len(_PASTE_END)].replace("\r\n", "\n").replace("\r", "\n")
        yield re.sub("[\x00-\x08\x0b-\x1f\x7f]", "", pasted), False
    elif token in _SEQUENCES:
        yield _SEQUENCES[token], True
    elif token.isprintable():
        yield token, False
