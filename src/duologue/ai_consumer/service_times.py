"""How long replies hold their slots: what estimates of waiting are made of. No I/O; the caller tells the time.

What counts is the time from a slot's being taken to its being free again, retries, pauses and storing included, since
that is what others wait for. Models differ a lot in length, so each has an average of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

FIRST_GUESS_SECONDS: Final = 2.0
"""What a reply is thought to take before one has ended; it counts like one measurement."""
LEAST_SECONDS: Final = 0.001
MAX_MODELS: Final = 64
"""Models whose averages are kept: the ones that ended a reply last."""

_LEAST_WEIGHT: Final = 0.1


class _Average:
    __slots__ = ("count", "seconds")

    def __init__(self, guess: float) -> None:
        self.seconds = guess
        self.count = 1

    def add(self, seconds: float) -> None:
        """The first measurements count alike, then the newest counts a tenth."""
        self.count += 1
        self.seconds += max(_LEAST_WEIGHT, 1 / self.count) * (seconds - self.seconds)


class _Running:
    """Slots held by one model's replies: how many, and the sum of the times at which they were taken."""

    __slots__ = ("count", "since")

    def __init__(self) -> None:
        self.count = 0
        self.since = 0.0


class ServiceTimes:
    """Averages by model, and who holds a slot since when. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._of_all = _Average(FIRST_GUESS_SECONDS)
        self._by_model: OrderedDict[str, _Average] = OrderedDict()
        self._running: dict[Hashable, tuple[str, float]] = {}
        self._by_running_model: dict[str, _Running] = {}

    @property
    def running(self) -> int:
        """Slots that are held."""
        return len(self._running)

    def began(self, key: Hashable, model: str, now: float) -> None:
        """A slot is taken. `model` is the one asked for, "" for the usual one."""
        self.left(key)
        self._running[key] = (model, now)
        of_model = self._by_running_model.setdefault(model, _Running())
        of_model.count += 1
        of_model.since += now

    def ended(self, key: Hashable, now: float) -> None:
        """A reply has its outcome: its slot is free again. Nothing happens if it held none."""
        taken = self._running.get(key)
        if taken is None:
            return
        model, since = taken
        self.left(key)
        seconds = max(LEAST_SECONDS, now - since)
        average = self._by_model.setdefault(model, _Average(self._of_all.seconds))
        self._by_model.move_to_end(model)
        if len(self._by_model) > MAX_MODELS:
            self._by_model.popitem(last=False)
        average.add(seconds)
        self._of_all.add(seconds)

    def left(self, key: Hashable) -> None:
        """A slot is free again without an outcome, which tells nothing. Nothing happens if it was not held."""
        taken = self._running.pop(key, None)
        if taken is None:
            return
        model, since = taken
        of_model = self._by_running_model[model]
        of_model.count -= 1
        of_model.since -= since
        if not of_model.count:
            del self._by_running_model[model]

    def expected(self, model: str, now: float) -> float:
        """Return how long a reply of a model is thought to take.

        Not less than those that run have taken so far, on the average: of a model that has become slow nothing ends for
        a while, and what ended before says nothing of it.
        """
        average = self._by_model.get(model, self._of_all).seconds
        running = self._by_running_model.get(model)
        return average if running is None else max(average, now - running.since / running.count)

    def remaining(self, key: Hashable, now: float) -> float:
        """Return how long a reply that runs is thought to go on; one that is not known, a whole one."""
        taken = self._running.get(key)
        if taken is None:
            return self._of_all.seconds
        return max(0.0, self.expected(taken[0], now) - (now - taken[1]))

    def mean(self, now: float) -> float:
        """Return how long a slot is held on the average, as things are: of what runs, else of what ended last.

        Of replies of several lengths each frees its slot that much oftener as it is shorter, so their harmonic mean.
        """
        if not self._running:
            return self._of_all.seconds
        ends_per_second = sum(
            running.count / self.expected(model, now) for model, running in self._by_running_model.items()
        )
        return len(self._running) / ends_per_second
