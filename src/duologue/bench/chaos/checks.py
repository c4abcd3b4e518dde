"""The comparison: every invariant over one history."""

from __future__ import annotations

from itertools import islice
from typing import Final

from duologue.bench.chaos.history import History
from duologue.bench.chaos.invariants import asked, rest, stored, told  # they register their invariants
from duologue.bench.chaos.invariants.breach import INVARIANTS, MOST_COUNTED, Breach

_MODULES: Final = (told, stored, asked, rest)

ALL: Final = INVARIANTS
"""Every invariant by its name."""


def check(history: History) -> list[Breach]:
    """Return what did not hold; empty if all is well."""
    return [
        Breach(name, evidence, at)
        for name, holds in ALL.items()
        for evidence, at in islice(holds(history), MOST_COUNTED)
    ]
