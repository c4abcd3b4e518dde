"""What one phase of a load has measured: counts, histograms, breaches, and what the second that passes adds to them."""

from __future__ import annotations

from collections import Counter
from typing import Final, Literal, TypeAlias

import msgspec

from duologue.bench.histogram import Histogram
from duologue.bench.load.arrivals import LATE_SECONDS

_MOST_EVIDENCE: Final = 10

Breach: TypeAlias = Literal[
    "unanswered messages",
    "failed replies",
    "doubled outcomes",
    "gaps in a reply's pieces",
    "pieces after the end of a reply",
    "replies that differ from their pieces",
    "replies that differ between devices",
    "devices that could not come back",
    "pages of the history that could not be read",
]
"""What must not be, whatever the load."""


class ModelTimes(msgspec.Struct, frozen=True):
    """What the model takes by itself, as it is configured, in seconds: no part of what the system adds."""

    first_token: float = 0.0
    whole_reply: float = 0.0


class Window(msgspec.Struct):
    """What came in the second that passes: seconds that single messages took, and how many there were."""

    first_token: list[float] = []
    delta_delay: list[float] = []
    sent: int = 0
    answered: int = 0


class Recorder:
    """Of one group of users, in one phase.

    Args:
        model: what to subtract.
    """

    def __init__(self, model: ModelTimes | None = None) -> None:
        self._model = model or ModelTimes()
        self.histograms = {name: Histogram() for name in NAMES}
        self.breaches: Counter[str] = Counter()
        self.evidence: list[str] = []
        self.errors: Counter[str] = Counter()
        """Error frames that were no outcome, and closures that nobody here had asked for, by their code."""
        self.window = Window()
        self.sent = 0
        self.late = 0
        self.acked = 0
        self.answered = 0
        self.refused = 0
        self.resent = 0
        self.reconnects = 0
        self.deltas = 0
        self._first_token = self.histograms["first_token"]
        self._delta_delay = self.histograms["delta_delay"]

    def note_sent(self, seconds_late: float) -> None:
        """A message left."""
        self.sent += 1
        self.window.sent += 1
        if seconds_late > LATE_SECONDS:
            self.late += 1

    def note_first_token(self, seconds: float) -> None:
        """The first piece of a reply was seen so long after its message was due."""
        added = seconds - self._model.first_token
        self._first_token.record(added)
        self.window.first_token.append(added)

    def note_ack(self, seconds: float) -> None:
        """A message was acknowledged."""
        self.acked += 1
        self.histograms["ack"].record(seconds)

    def note_answer(self, seconds: float) -> None:
        """A message had its outcome, on the first of its user's devices."""
        self.answered += 1
        self.window.answered += 1
        self.histograms["reply"].record(seconds - self._model.whole_reply)

    def note_refusal(self, seconds: float) -> None:
        """A message was refused: nothing of it was accepted."""
        self.refused += 1
        self.histograms["refusal"].record(seconds)

    def note_attach(self, seconds: float) -> None:
        """A socket was opened and greeted."""
        self.histograms["attach"].record(seconds)

    def note_delta_delay(self, seconds: float) -> None:
        """A piece of the model arrived so long after it had left there."""
        self._delta_delay.record(seconds)
        self.window.delta_delay.append(seconds)

    def breach(self, what: Breach, evidence: str, count: int = 1) -> None:
        """Something was seen that must not be."""
        self.breaches[what] += count
        if len(self.evidence) < _MOST_EVIDENCE:
            self.evidence.append(f"{what}: {evidence}")

    def next_window(self) -> Window:
        """Return what has come since the last call."""
        ended, self.window = self.window, Window()
        return ended


NAMES: Final = ("first_token", "ack", "reply", "delta_delay", "attach", "refusal")
"""What is counted in histograms."""
