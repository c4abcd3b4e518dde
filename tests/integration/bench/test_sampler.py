"""CPU and memory of real processes, which tell themselves what they have used."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from duologue.bench import sampler
from duologue.bench.hops import Hops, RedisServer
from duologue.bench.sampler import LOAD, Sampler, cpu_between, hops_between
from duologue.cluster.valkey import ValkeyServer
from duologue.engines.valkey import bundled_valkey

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")

MEGABYTE = 1_000_000
TICKS_SECONDS = 0.03
"""/proc counts in steps of 10 ms, user and system each."""

_WORKER = """
import subprocess, sys, time
print(time.process_time(), flush=True)
for line in sys.stdin:
    word, amount = line.split()
    if word == "burn":
        end = time.process_time() + float(amount)
        while time.process_time() < end:
            pass
    elif word == "hold":
        held = b"x" * int(amount)
    elif word == "parent":
        child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[1]])  # on the same pipes
        child.wait()
    print(time.process_time(), flush=True)
"""


class Worker:
    """A process that does what it is told and then tells the CPU seconds that it has used since its start."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def told(self, command: str, amount: float) -> float:
        self.tell(command, amount)
        return await self.heard()

    def tell(self, command: str, amount: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command} {amount}\n".encode())

    async def heard(self) -> float:
        assert self._process.stdout is not None
        return float(await self._process.stdout.readline())

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


@asynccontextmanager
async def working() -> AsyncIterator[Worker]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WORKER, _WORKER, stdin=pipe, stdout=pipe, start_new_session=True
    )
    try:
        worker = Worker(process)
        await worker.heard()
        yield worker
    finally:
        await Worker(process).end()


async def test_cpu_of_a_role_is_what_its_processes_count_themselves() -> None:
    async with working() as one, working() as another:
        running = {"websocket-server": [one.pid, another.pid]}
        async with Sampler(lambda: running) as watched:
            begin = await watched.mark("begin")
            before = await one.told("burn", 0) + await another.told("burn", 0)
            after = await one.told("burn", 0.2) + await another.told("burn", 0.1)
            end = await watched.mark("end")
    used = cpu_between(begin, end)["websocket-server"]
    assert used == pytest.approx(after - before, abs=2 * TICKS_SECONDS)


async def test_cpu_of_a_child_is_its_parents_roles() -> None:
    async with working() as parent, Sampler(lambda: {"kafka": [parent.pid]}) as watched:
        begin = await watched.mark("begin")
        await parent.told("parent", 0)
        used = await parent.told("burn", 0.2)  # by the child, which has taken over the pipes
        end = await watched.mark("end")
    assert used >= 0.2
    assert cpu_between(begin, end)["kafka"] == pytest.approx(used, abs=2 * TICKS_SECONDS)


async def test_cpu_of_a_process_that_has_ended_stays_in_its_role() -> None:
    running: dict[str, list[int]] = {}
    async with Sampler(lambda: running) as watched:
        async with working() as worker:
            running["api"] = [worker.pid]
            used = await worker.told("burn", 0.2)
            begin = await watched.mark("begin")
        running["api"] = []
        end = await watched.mark("end")
    assert begin.cpu_seconds["api"] == pytest.approx(used, abs=TICKS_SECONDS)
    assert end.cpu_seconds["api"] == begin.cpu_seconds["api"]
    assert end.resident_bytes == {LOAD: end.resident_bytes[LOAD]}


async def test_engine_that_a_process_has_started_is_a_role_of_its_own(tmp_path: Path) -> None:
    async with bundled_valkey(tmp_path), Sampler(lambda: {"duologue": [os.getpid()]}) as watched:
        sample = await watched.mark("now")
    assert sample.resident_bytes["valkey"] > MEGABYTE


async def test_cpu_of_this_process_is_the_loads() -> None:
    async with Sampler(dict) as watched:
        begin = await watched.mark("begin")
        before = time.process_time()
        while time.process_time() < before + 0.1:
            pass
        end = await watched.mark("end")
    assert cpu_between(begin, end)[LOAD] >= 0.1
    assert 0 < watched.series().sampling_cpu_seconds < end.cpu_seconds[LOAD]


async def test_memory_between_marks_has_its_begin_end_and_highest() -> None:
    async with working() as worker, Sampler(lambda: {"api": [worker.pid]}) as watched:
        await worker.told("hold", 10 * MEGABYTE)
        begin = await watched.mark("begin")
        await worker.told("hold", 90 * MEGABYTE)
        await watched.mark("high")
        await worker.told("hold", 30 * MEGABYTE)
        end = await watched.mark("end")
        await worker.told("hold", 150 * MEGABYTE)
        await watched.mark("later")
        memory = watched.series().memory_between(begin, end)["api"]
    assert memory.begin_bytes == begin.resident_bytes["api"]
    assert memory.end_bytes == pytest.approx(memory.begin_bytes + 20 * MEGABYTE, abs=5 * MEGABYTE)
    assert memory.highest_bytes == pytest.approx(memory.begin_bytes + 80 * MEGABYTE, abs=5 * MEGABYTE)


async def test_idle_cpu_is_what_is_used_while_nothing_is_done() -> None:
    async with working() as worker, Sampler(lambda: {"api": [worker.pid]}) as watched:
        worker.tell("burn", 0.15)
        idle = await watched.idle_cpu(0.5)
        used = await worker.heard()
        begin, end = (each for each in watched.series().samples if each.mark)
    assert used >= 0.15
    assert idle["api"] * (end.at_seconds - begin.at_seconds) == pytest.approx(cpu_between(begin, end)["api"])
    assert cpu_between(begin, end, idle)["api"] == pytest.approx(0, abs=1e-9)


async def test_series_has_samples_of_its_own_and_marks_in_the_order_of_time() -> None:
    async with Sampler(dict, interval_seconds=0.01) as watched:
        await watched.mark("begin")
        async with asyncio.timeout(10):
            while sum(each.mark is None for each in watched.series().samples) < 5:  # noqa: ASYNC110  # it has no event
                await asyncio.sleep(0.01)
        await watched.mark("end")
    samples = watched.series().samples
    assert [each.mark for each in samples if each.mark] == ["begin", "end"]
    assert [each.at_seconds for each in samples] == sorted(each.at_seconds for each in samples)


async def test_hops_between_marks_are_what_went_over_them(valkey: str, session_valkey: ValkeyServer) -> None:
    async with Sampler(dict, Hops({"valkey": RedisServer(valkey)})) as watched:
        begin = await watched.mark("begin")
        answer = session_valkey.execute("ECHO", "x" * 5_000)
        end = await watched.mark("end")
    bytes_between = hops_between(begin, end)["valkey"]
    assert bytes_between.from_server == len(answer)
    assert bytes_between.to_server > 5_000


async def test_hops_that_cost_much_to_read_are_read_rarely_but_at_each_mark(
    valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "HOPS_SHARE", 1e-9)
    async with Sampler(dict, Hops({"valkey": RedisServer(valkey)}), interval_seconds=0.01) as watched:
        await watched.mark("begin")
        async with asyncio.timeout(10):
            while sum(each.hops is None for each in watched.series().samples) < 5:  # noqa: ASYNC110  # it has no event
                await asyncio.sleep(0.01)
        await watched.mark("end")
    samples = watched.series().samples
    assert all(each.hops is not None for each in samples if each.mark)
    assert sum(each.hops is not None for each in samples if not each.mark) <= 1


async def test_sampler_that_cannot_tell_processes_raises_at_its_end() -> None:
    failed = asyncio.Event()

    def processes() -> dict[str, list[int]]:
        failed.set()
        raise RuntimeError("no such system")

    with pytest.raises(RuntimeError, match="no such system"):
        async with Sampler(processes):
            await asyncio.wait_for(failed.wait(), 10)
