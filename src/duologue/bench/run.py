"""One run: a system is opened, a scenario measures its steps on it, and all of it becomes a report."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from duologue import __version__
from duologue.bench.display import Display
from duologue.bench.histogram import Histogram
from duologue.bench.load.crowd import Crowd, Entrance, crowd, names_of
from duologue.bench.load.recorder import Recorder
from duologue.bench.machine import commit, machine
from duologue.bench.meter import Meter
from duologue.bench.options import Asked, Load, Where, arguments, parameters
from duologue.bench.percentile import percentile
from duologue.bench.report.model import Hop, Report, Second, Step, latency
from duologue.bench.sampler import LOAD, Sample, cpu_between, hops_between
from duologue.bench.target import Target
from duologue.domain.tasks import end_task

DRAIN_SECONDS: Final = 30.0
"""How long after the last message of a step all must be answered."""

_BUSY_SHARE: Final = 0.7
_LATE_SHARE: Final = 0.01
_WARM_UP_SECONDS: Final = {"embedded": 2.0, "running": 2.0, "distributed": 15.0}


class Bench:
    """A system that is measured, and what has been measured so far.

    Args:
        target: the system.
        meter: of what it uses; it runs.
        display: who is told how it goes.
    """

    def __init__(self, target: Target, meter: Meter, display: Display) -> None:
        self.target = target
        self.meter = meter
        self.display = display
        self.figures: dict[str, float] = {}
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self.evidence: list[str] = []
        self.idle: dict[str, float] = {}
        """CPU seconds a second, by role and engine, without load."""
        self.processes = {name: len(pids) for name, pids in target.pids().items()}

    def crowd(
        self,
        names: Sequence[str] | int,
        *,
        devices: int = 1,
        turns: int = 0,
        seed: int = 1,
        entrance: Entrance | None = None,
    ) -> AbstractAsyncContextManager[Crowd]:
        """Connect users, of these names or so many, at the system's own entrance or another; see `load.crowd.crowd`."""
        self.display.begin("connecting users")
        listed = names_of(names) if isinstance(names, int) else names
        times = self.target.model_times
        return crowd(entrance or self.target.entrance, listed, devices=devices, turns=turns, model=times, seed=seed)

    async def watch_idle(self, seconds: float) -> None:
        """Note the CPU that everything uses without load."""
        if seconds <= 0:
            return
        self.display.begin("watching what it uses without load")
        self.idle = await self.meter.idle(seconds)

    async def warm_up(self, users: Crowd, asked: Load, rate: float) -> None:
        """Let connections, caches and batches, and in the distributed mode Kafka's Java, come to their speed."""
        seconds = asked.warm_up_seconds if asked.warm_up_seconds >= 0 else _WARM_UP_SECONDS[self.target.mode]
        self.display.begin("warming up")
        if seconds:
            await users.send_at_rate(rate, seconds, f"warm-up {asked.seed}")
        await users.until_answered(DRAIN_SECONDS)
        seen = users.recorder
        if seen.breaches:  # else it is forgotten: its figures are of caches that were cold
            self.steps.append(Step(name="warm-up", seconds=seconds, sent=seen.sent, breaches=dict(seen.breaches)))
            self.evidence += seen.evidence
        gc.collect()
        gc.freeze()  # the load's own pauses would be taken for the system's

    @asynccontextmanager
    async def phase(self, name: str, users: Crowd, *others: Crowd) -> AsyncIterator[Phase]:
        """Measure what happens inside as one step. Its latencies are those of `users`, its breaches those of all.

        The step is there when the context has ended: it ends when every message is answered, or 30 s are over.
        """
        self.display.begin(name)
        phase = Phase(self, name, users, others)
        await phase.begin()
        ticking = asyncio.create_task(phase.tick())
        try:
            yield phase
            phase.loaded()
            for each in (users, *others):
                await each.until_answered(DRAIN_SECONDS)
        finally:
            await end_task(ticking)
        self.steps.append(await phase.end())

    async def loaded(self, users: Crowd, asked: Load, *, name: str, rate: float, seconds: float, seed: str) -> Step:
        """Measure one step of messages at a rate, with sockets that are lost meanwhile."""
        async with self.phase(name, users) as phase:
            phase.offered = rate
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(users.send_at_rate(rate, seconds, seed))
                tasks.create_task(users.lose_sockets(asked.reconnects_per_minute, seconds, seed))
        return self.steps[-1]


class Phase:
    """A step while it is measured."""

    def __init__(self, bench: Bench, name: str, users: Crowd, others: Sequence[Crowd]) -> None:
        self.offered = 0.0
        self.histograms: dict[str, Histogram] = {}
        """More than the crowd's own, by their names in `LATENCIES`."""
        self.recorder: Recorder
        self._bench = bench
        self._name = name
        self._users = users
        self._others = others
        self._also: list[Recorder] = []
        self._series: list[Second] = []
        self._begin: Sample
        self._began = 0.0
        self._loaded_at = 0.0

    async def begin(self) -> None:
        """The step begins now."""
        self._begin = await self._bench.meter.mark()
        self.recorder = self._users.begin_phase()
        self._also = [each.begin_phase() for each in self._others]
        self._began = time.perf_counter()

    def loaded(self) -> None:
        """The last message has left; the first time that it is told counts."""
        self._loaded_at = self._loaded_at or time.perf_counter()

    async def tick(self) -> None:
        """Note each second that passes, until cancelled."""
        number = 1
        while True:
            await asyncio.sleep(max(0.0, self._began + number - time.perf_counter()))
            number += 1
            self._note_second()
            self._bench.display.second(self._series)

    def _note_second(self) -> None:
        window = self.recorder.next_window()
        # There may be tens of thousands; to sort them again, as each percentile does, is cheap.
        first, delay = sorted(window.first_token), sorted(window.delta_delay)
        second = Second(
            at=round(time.perf_counter() - self._began, 2),
            sent=window.sent,
            answered=window.answered,
            in_flight=self._users.open,
            first_token_p50=_milliseconds(percentile(first, 0.5)),
            first_token_p99=_milliseconds(percentile(first, 0.99)),
            delta_delay_p50=_milliseconds(percentile(delay, 0.5)),
            delta_delay_p99=_milliseconds(percentile(delay, 0.99)),
            cpu_percent=self._cpu_percent(),
        )
        self._series.append(second)

    def _cpu_percent(self) -> dict[str, float]:
        """Return what was used in the last second of which there are samples: they are taken beside this."""
        before, after = self._bench.meter.last_second()
        passed = after.at_seconds - before.at_seconds
        if passed <= 0:
            return {}
        return {name: round(used / passed * 100, 1) for name, used in cpu_between(before, after).items()}

    async def end(self) -> Step:
        """Return what was measured; the step ends now."""
        drained_after = time.perf_counter() - self._loaded_at
        step = self._measured(await self._bench.meter.mark(), drained_after)
        for each in (self.recorder, *self._also):
            self._bench.evidence += each.evidence
        if note := load_note(step):
            self._bench.notes.append(note)
        return step

    def _measured(self, end: Sample, drained_after: float) -> Step:
        recorder, recorders = self.recorder, [self.recorder, *self._also]
        messages, deltas = sum(each.sent for each in recorders), sum(each.deltas for each in recorders)
        used, beyond_idle = cpu_between(self._begin, end), cpu_between(self._begin, end, self._bench.idle)
        histograms = {name: found for name, found in recorder.histograms.items() if found.count} | self.histograms
        return Step(
            name=self._name,
            seconds=round(self._loaded_at - self._began, 2),
            offered_per_second=self.offered,
            sent=recorder.sent,
            late=recorder.late,
            acked=recorder.acked,
            answered=recorder.answered,
            unanswered=sum(each.breaches["unanswered messages"] for each in recorders),
            refused=recorder.refused,
            resent=recorder.resent,
            reconnects=recorder.reconnects,
            deltas=recorder.deltas,
            drained_after_seconds=round(drained_after, 2),
            errors=_sum([each.errors for each in recorders]),
            breaches={name: count for name, count in _sum([each.breaches for each in recorders]).items() if count},
            latencies={name: latency(found) for name, found in histograms.items()},
            cpu_ms_per_message=_each(used, 1000, messages),
            cpu_ms_per_message_beyond_idle=_each(beyond_idle, 1000, messages),
            cpu_us_per_delta=_each(beyond_idle, 1e6, deltas),
            bytes_per_message=_hops(self._begin, end, messages),
            load_core_share=round(used[LOAD] / (end.at_seconds - self._begin.at_seconds), 3),
            series=self._series,
        )


def load_note(step: Step) -> str | None:
    """Return what is to be said of a step in which the load itself was the limit, None if it was not."""
    late = step.late / max(step.sent, 1)
    if step.load_core_share <= _BUSY_SHARE and late <= _LATE_SHARE:
        return None
    words = f"used {step.load_core_share:.0%} of a core and sent {late:.1%} late"
    return f"load generator at its end in {step.name}: it {words}; the figures are partly its own"


def _hops(begin: Sample, end: Sample, messages: int) -> dict[str, Hop]:
    """Return the bytes of a message on each hop that can be read."""
    if not messages:
        return {}
    return {
        name: Hop(to_server=round(found.to_server / messages, 1), from_server=round(found.from_server / messages, 1))
        for name, found in hops_between(begin, end).items()
    }


def _each(used: dict[str, float], scale: float, count: int) -> dict[str, float]:
    return {name: round(seconds * scale / count, 3) for name, seconds in used.items()} if count else {}


def _sum(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            found[name] = found.get(name, 0) + count
    return found


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def make_report(scenario: str, asked: Asked, where: Where, bench: Bench, *, began: float) -> Report:
    """Return the report of a run that began at `began`, in seconds since the Unix epoch."""
    notes = [*bench.notes, *(f"bytes of {name} are unknown: {why}" for name, why in bench.meter.unknown_hops.items())]
    if not bench.target.is_own:
        notes.append("CPU and memory of a running system are not known here")
        if bench.target.model is None:
            notes.append("the model's own time is in all figures, as no --model-url was given")
    return Report(
        scenario=scenario,
        mode=bench.target.mode,
        parameters=parameters(asked),
        processes=bench.processes,
        arguments=arguments(scenario, asked, where),
        seed=asked.seed,
        began=began,
        seconds=round(time.time() - began, 1),
        version=__version__,
        commit=commit(),
        machine=machine(),
        idle_cpu_percent={name: round(share * 100, 1) for name, share in bench.idle.items()},
        figures=bench.figures,
        steps=bench.steps,
        evidence=bench.evidence,
        notes=notes,
    )
