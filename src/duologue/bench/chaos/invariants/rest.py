"""What must hold of the whole: it heals, it ends in order, it leaves nothing behind, it says only what it may."""

from __future__ import annotations

from typing import Final

from duologue.bench.chaos.history import Closed, History, Told
from duologue.bench.chaos.invariants.breach import Evidence, invariant

_EXPECTED: Final = frozenset(
    ["generation_failed", "service_unavailable", "overloaded", "still_generating", "not_last", "rate_limited"]
)
"""What a client that does nothing wrong may be answered while things break around it."""

_EXPECTED_CLOSES: Final = frozenset([1000, 1001, 1005, 1006, 1011, 1012, 1013])


@invariant
def it_heals(history: History) -> Evidence:
    """After each fault all that was accepted is answered, no process ends by itself, in the end nothing is owed."""
    for words in history.not_healed:
        yield words, None


@invariant
def what_is_asked_to_end_ends_in_order(history: History) -> Evidence:
    """SIGTERM ends a process with exit code 0."""
    for fault in history.faults:
        if fault.exit_code not in (None, 0):
            yield f"{fault.target}: exit code {fault.exit_code}", fault.began


@invariant
def clients_are_told_only_errors_that_have_a_reason(history: History) -> Evidence:
    """A client that does nothing wrong is never told that it did, nor of an error inside of the server."""
    for device in history.devices:
        for entry in device.entries:
            if isinstance(entry, Told) and entry.frame.type == "error" and entry.frame.code not in _EXPECTED:
                yield f"{device.name.name}: {entry.frame.code}: {entry.frame.message}", entry.at
            elif isinstance(entry, Closed) and not entry.by_client and entry.code not in _EXPECTED_CLOSES:
                yield f"{device.name.name}: closed with {entry.code}", entry.at


@invariant
def nothing_is_left_behind(history: History) -> Evidence:
    """After a quiet time there is no task, file, socket, key, work or claim more than before."""
    for left in history.leftovers:
        yield f"{left.kind} in {left.where}: {left.detail}", None
