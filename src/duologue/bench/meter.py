"""What a run uses, by role and engine: CPU, memory and the bytes on each hop, the load's own CPU among them."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from duologue.bench.hops import Hops
from duologue.bench.sampler import Memory, Sample, Sampler
from duologue.bench.target import Target

_SECOND: Final = 0.9


class Meter:
    """Samples once a second while its context is open. Of a system whose processes are not ours it knows the load's
    CPU and the bytes of its own connections only."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._sampler = Sampler(target.pids, Hops(target.hops))

    async def __aenter__(self) -> Self:
        await self._sampler.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._sampler.__aexit__(kind, error, trace)

    async def mark(self) -> Sample:
        """Return a sample of right now, with everything in it."""
        return await self._sampler.mark()

    def last_second(self) -> tuple[Sample, Sample]:
        """Return the latest sample and the one about a second before it: between two that lie closer together, the
        10 ms in which CPU time is counted would be most of what there is to see."""
        samples = self._sampler.series().samples
        latest = samples[-1]
        before = (each for each in reversed(samples) if each.at_seconds < latest.at_seconds - _SECOND)
        return next(before, samples[0]), latest

    async def idle(self, seconds: float) -> dict[str, float]:
        """Watch for a while in which nobody does anything; return the CPU seconds a second by role that were used."""
        return await self._sampler.idle_cpu(seconds)

    @property
    def unknown_hops(self) -> dict[str, str]:
        """The hops whose bytes nobody counts, and why."""
        return self._sampler.series().unknown_hops

    def memory_between(self, begin: Sample, end: Sample) -> Memory:
        """Return the memory of the processes that hold clients' sockets, from one mark to a later one."""
        return self._sampler.series().memory_between(begin, end)[self._target.socket_holders]

    def resident(self, sample: Sample) -> int:
        """Return the resident bytes of the processes that hold clients' sockets."""
        return sample.resident_bytes.get(self._target.socket_holders, 0)
