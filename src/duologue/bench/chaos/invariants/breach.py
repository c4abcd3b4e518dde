"""What an invariant is, and what breaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import msgspec

from duologue.bench.chaos.history import History

MOST_COUNTED: Final = 50
"""Breaches of one invariant that are kept: what breaks once too often breaks everywhere."""


class Breach(msgspec.Struct, frozen=True):
    """An invariant that did not hold, and what shows it. `at` is when, in seconds since the Unix epoch, if known."""

    invariant: str
    evidence: str
    at: float | None = None


Evidence: TypeAlias = Iterator[tuple[str, float | None]]
"""What an invariant yields: evidence in words, and when it was, if that is known."""

Invariant: TypeAlias = Callable[[History], Evidence]

INVARIANTS: Final[dict[str, Invariant]] = {}
"""All invariants by name. A module's are here once it is imported."""


def invariant(check: Invariant) -> Invariant:
    """Count a function among the invariants: its name, with spaces, is theirs."""
    INVARIANTS[check.__name__.replace("_", " ")] = check
    return check
