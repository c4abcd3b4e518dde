"""What a system costs while it runs, sampled once a second: CPU and memory by role and engine, bytes on each hop."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self

import msgspec

from duologue.bench.hop_bytes import NO_BYTES, HopBytes
from duologue.bench.hops import Hops
from duologue.bench.processes import descendants, program_of, read_process
from duologue.domain.tasks import end_task

LOAD: Final = "load"
"""The role of this process."""

INTERVAL_SECONDS: Final = 1.0
HOPS_SHARE: Final = 0.02
"""Of a core, at most, for reading hops: of 10,000 sockets one reading takes 0.1 s, and then they are read rarely."""

_ENGINES: Final[Mapping[str, str]] = {"valkey-server": "valkey"}
"""Programs that count as a role of their own, whoever has started them."""

Processes = Callable[[], Mapping[str, Iterable[int]]]
"""Returns the ids of the processes that run, by role or engine. Their children belong to them."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One look at everything.

    `at_seconds` is since the series' begin. `cpu_seconds` is what all processes of a role have used since their start,
    those that have ended among them; `resident_bytes` what those that run hold. `hops` is None where they were not
    read. `mark` is the name of the moment, if it has one.
    """

    at_seconds: float
    cpu_seconds: dict[str, float]
    resident_bytes: dict[str, int]
    hops: dict[str, HopBytes] | None = None
    mark: str | None = None


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Resident bytes of a role at the begin and the end of a time, and the highest of the samples in it."""

    begin_bytes: int
    end_bytes: int
    highest_bytes: int


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """All samples in their order. `sampling_cpu_seconds` is what taking them has cost, which is part of the load's;
    `unknown_hops` tells why a hop is missing."""

    samples: list[Sample]
    unknown_hops: dict[str, str]
    sampling_cpu_seconds: float

    def memory_between(self, begin: Sample, end: Sample) -> dict[str, Memory]:
        """Return the memory by role from one sample of this series to a later one."""
        between = [each for each in self.samples if begin.at_seconds <= each.at_seconds <= end.at_seconds]
        return {
            role: Memory(
                begin_bytes=begin.resident_bytes.get(role, 0),
                end_bytes=end.resident_bytes.get(role, 0),
                highest_bytes=max(each.resident_bytes.get(role, 0) for each in between),
            )
            for role in {name: None for each in between for name in each.resident_bytes}
        }


def cpu_between(begin: Sample, end: Sample, idle_per_second: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the CPU seconds by role that were used from one sample to a later one.

    Args:
        begin: the earlier one; `end` is the later one.
        idle_per_second: as `Sampler.idle_cpu` returns it: that much is taken away, so that what is left is what the
            work has cost. It can be below zero, of a role that did nothing.
    """
    elapsed, idle = end.at_seconds - begin.at_seconds, idle_per_second or {}
    return {
        role: used - begin.cpu_seconds.get(role, 0.0) - idle.get(role, 0.0) * elapsed
        for role, used in end.cpu_seconds.items()
    }


def hops_between(begin: Sample, end: Sample) -> dict[str, HopBytes]:
    """Return the bytes on each hop from one mark to a later one."""
    before = begin.hops or {}
    return {name: now - before.get(name, NO_BYTES) for name, now in (end.hops or {}).items()}


class Sampler:
    """Takes samples while its context is open; raises at its end what has kept it from that.

    It reads in a thread of its own, so that what waits for the kernel or an engine does not hold up the load.

    What it misses: the CPU that a process used between the last sample and its end, and a child that lived for less
    than an interval.

    Args:
        processes: tells which processes there are; called in the event loop at each sample. This process is there
            without being told, as `LOAD`.
        hops: not entered yet; they count from the begin of this context. None: no hops.
        interval_seconds: between samples.
    """

    def __init__(
        self, processes: Processes, hops: Hops | None = None, *, interval_seconds: float = INTERVAL_SECONDS
    ) -> None:
        self._processes = processes
        self._hops = hops or Hops({})
        self._interval_seconds = interval_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampler")
        self._usage = _Usage()
        self._samples: list[Sample] = []
        self._hops_due = 0.0
        self._sampling_seconds = 0.0
        self._running: asyncio.Task[None] | None = None
        self.began_at = 0.0
        """The series' begin by `time.perf_counter`."""

    async def __aenter__(self) -> Self:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._begin)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise
        self._running = asyncio.create_task(self._run(), name="sampler")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._running is not None  # noqa: S101  # entered
        try:
            await end_task(self._running)
        finally:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._hops.__exit__, None, None, None)
            self._thread.shutdown()

    async def mark(self, name: str | None = None) -> Sample:
        """Take a sample now, with everything in it, and return it."""
        return await self._sample(name, whole=True)

    async def idle_cpu(self, seconds: float) -> dict[str, float]:
        """Watch for a while in which nobody does anything; return the CPU seconds a second by role that were used."""
        begin = await self.mark("idle begins")
        await asyncio.sleep(seconds)
        end = await self.mark("idle ends")
        elapsed = end.at_seconds - begin.at_seconds
        return {role: used / elapsed for role, used in cpu_between(begin, end).items()}

    def series(self) -> Series:
        """Return what there is so far."""
        return Series(
            samples=list(self._samples),
            unknown_hops=dict(self._hops.unknown),
            sampling_cpu_seconds=self._sampling_seconds,
        )

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            await self._sample(None, whole=False)
            due += self._interval_seconds
            if due < (now := loop.time()):  # this process was held up: the samples that were missed are not made up for
                due = now
            await asyncio.sleep(due - now)

    async def _sample(self, mark: str | None, *, whole: bool) -> Sample:
        roots = {role: list(pids) for role, pids in self._processes().items()}
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._look, roots, mark, whole)

    def _begin(self) -> None:
        self._hops.__enter__()
        self.began_at = time.perf_counter()

    def _look(self, roots: Mapping[str, Sequence[int]], mark: str | None, whole: bool) -> Sample:
        began = time.thread_time()
        at_seconds = time.perf_counter() - self.began_at
        cpu, resident = self._usage.read(roots)
        hops = self._read_hops(at_seconds) if whole or at_seconds >= self._hops_due else None
        sample = Sample(at_seconds=at_seconds, cpu_seconds=cpu, resident_bytes=resident, hops=hops, mark=mark)
        self._samples.append(sample)
        self._sampling_seconds += time.thread_time() - began
        return sample

    def _read_hops(self, at_seconds: float) -> dict[str, HopBytes]:
        began = time.thread_time()
        found = self._hops.read()
        self._hops_due = at_seconds + (time.thread_time() - began) / HOPS_SHARE
        return found


class _Usage:
    """What processes have used, by role, those that have ended among them."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], tuple[str, float]] = {}
        """Role and last known CPU seconds of each process that there was, by its identity."""

    def read(self, roots: Mapping[str, Sequence[int]]) -> tuple[dict[str, float], dict[str, int]]:
        """Return CPU seconds and resident bytes by role."""
        resident: dict[str, int] = {}
        for role, pids in roots.items():
            for pid in pids:
                self._enter(role, pid, resident, is_root=True)
                for child in descendants(pid):
                    self._enter(role, child, resident, is_root=False)
        cpu: dict[str, float] = {}
        for role, seconds in self._seen.values():
            cpu[role] = cpu.get(role, 0.0) + seconds
        own = read_process(os.getpid())
        # The kernel's own clock for this process is finer than /proc.
        return cpu | {LOAD: time.process_time()}, resident | {LOAD: own.resident_bytes if own else 0}

    def _enter(self, role: str, pid: int, resident: dict[str, int], *, is_root: bool) -> None:
        figures = read_process(pid)
        if figures is None:
            return
        if not is_root:
            role = _ENGINES.get(program_of(pid), role)
        self._seen[figures.pid, figures.started_at] = role, figures.cpu_seconds
        resident[role] = resident.get(role, 0) + figures.resident_bytes
