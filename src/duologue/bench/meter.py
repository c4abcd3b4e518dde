"""What the processes of a run use: CPU and memory by role and engine, the load's own CPU among them."""

from __future__ import annotations

import time

import msgspec

from duologue.bench.processes import cpu_seconds, resident_bytes
from duologue.bench.target import Target


class Mark(msgspec.Struct, frozen=True):
    """What was used up to a moment: `at` of `time.perf_counter`, CPU seconds by role and engine."""

    at: float
    cpu: dict[str, float]


class Meter:
    """Reads /proc. Of a system whose processes are not ours it knows the load's CPU only."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def mark(self) -> Mark:
        """Return what was used up to now."""
        used = {name: sum(map(cpu_seconds, pids)) for name, pids in self._target.pids().items()}
        return Mark(time.perf_counter(), used | {"load": time.process_time()})

    def resident(self) -> int:
        """Return the resident bytes of the processes that hold clients' sockets."""
        return sum(map(resident_bytes, self._target.socket_holders()))


def used_between(before: Mark, after: Mark) -> dict[str, float]:
    """Return the CPU seconds used between two marks; what has ended in between counts as 0."""
    return {name: max(0.0, seconds - before.cpu.get(name, 0.0)) for name, seconds in after.cpu.items()}
