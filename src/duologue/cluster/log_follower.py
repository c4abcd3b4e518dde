"""Follows the logs of many programs at once, as `tail -F` does, each line with the program's name."""

from __future__ import annotations

import os
import time
from itertools import cycle
from pathlib import Path
from typing import IO, Final, Self

from rich.console import Console
from rich.text import Text

from duologue.domain.errors import StartRefused

_POLL_SECONDS: Final = 0.2
_FIRST_BYTES: Final = 4096
"""From the end of each log: what is shown of the past."""

_FIRST_LINES: Final = 10
_COLOURS: Final = ("cyan", "green", "magenta", "yellow", "blue", "red", "bright_cyan", "bright_green", "bright_magenta")


def follow(folder: Path, service: str, console: Console) -> None:
    """Print the last lines of the logs, then new ones as they come, until interrupted.

    Args:
        folder: has `<name>.log` for each program.
        service: a program's name, with or without its number; empty: all of them.
        console: takes the lines.

    Raises:
        StartRefused: there is no such log.
    """
    if not _chosen(folder, service):
        raise StartRefused(_unknown(folder, service))
    with LogFollower(folder, service) as follower:
        while True:
            for name, colour, line in follower.lines():
                console.print(Text.assemble((f"{name:<20} ", colour), line))
            time.sleep(_POLL_SECONDS)


class LogFollower:
    """Reads on where it was, also when a log has been rotated or is new; holds the logs open while its context is."""

    def __init__(self, folder: Path, service: str) -> None:
        self._folder = folder
        self._service = service
        self._logs: dict[str, _Log] = {}
        self._colours = cycle(_COLOURS)
        for path in _chosen(folder, service):
            self._logs[path.stem] = _Log(path, next(self._colours), from_end=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for log in self._logs.values():
            log.close()

    def lines(self) -> list[tuple[str, str, str]]:
        """Return what is new: the program's name, its colour, the line."""
        for path in _chosen(self._folder, self._service):
            if path.stem not in self._logs:
                self._logs[path.stem] = _Log(path, next(self._colours), from_end=False)
        return [(name, log.colour, line) for name, log in self._logs.items() for line in log.lines()]


class _Log:
    def __init__(self, path: Path, colour: str, *, from_end: bool) -> None:
        self.colour = colour
        self._path = path
        self._file: IO[bytes] = path.open("rb")
        self._rest = b""
        self._past: list[str] = []
        if from_end:
            start = max(0, path.stat().st_size - _FIRST_BYTES)
            self._file.seek(start)
            lines = self._read()
            self._past = lines[1 if start else 0 :][-_FIRST_LINES:]  # the first begins in its middle

    def close(self) -> None:
        self._file.close()

    def lines(self) -> list[str]:
        past, self._past = self._past, []
        new = self._read()
        if self._was_replaced():
            self._file.close()
            self._file = self._path.open("rb")
            new += self._read()
        return past + new

    def _read(self) -> list[str]:
        *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [line.decode(errors="replace") for line in whole]

    def _was_replaced(self) -> bool:
        """It was rotated away, or emptied."""
        try:
            now = self._path.stat()
        except FileNotFoundError:  # in the middle of a rotation
            return False
        return now.st_ino != os.fstat(self._file.fileno()).st_ino or now.st_size < self._file.tell()


def _chosen(folder: Path, service: str) -> list[Path]:
    every = sorted(folder.glob("*.log"))
    return [path for path in every if not service or path.stem == service or path.stem.rpartition("-")[0] == service]


def _unknown(folder: Path, service: str) -> str:
    names = ", ".join(path.stem for path in sorted(folder.glob("*.log")))
    if not names:
        return "the cluster was never started, there are no logs: `make start-all` starts it"
    return f"there is no log of {service}; there are: {names}"
