"""What is measured: messages at a rate, the highest rate sustained, replies streaming at once, idle sockets."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp

from duologue.bench.distributed import distributed_system, own_engines
from duologue.bench.load import LoadUser, connect_users, send_at_rate, until_answered
from duologue.bench.process import free_port
from duologue.bench.processes import cpu_seconds, descendants, program_of, resident_bytes
from duologue.bench.system import System, embedded_system
from duologue.cluster.server_process import ServerProcess
from duologue.engines.child import child_process

Figures = dict[str, Any]
Mode = Literal["embedded", "distributed"]

_DRAIN_SECONDS: Final = 30.0
_WARM_UP_SECONDS: Final[Mapping[Mode, float]] = {"embedded": 2.0, "distributed": 15.0}
"""For connections, caches and batches; of the distributed mode also for the compiler of Kafka's Java."""

_NO_LIMITS: Final = {
    "USER_RATE_LIMIT_MAX_REQUESTS": "1000000",
    "TOKEN_RATE_LIMIT_MAX_REQUESTS": "1000000",
    "LOG_LEVEL": "INFO",
}


class Bench:
    """A system of either mode beside a model server, all of them processes of their own."""

    def __init__(self, system: System, engines: Mapping[str, ServerProcess], model_pid: int, model_url: str) -> None:
        self.system = system
        self.model_url = model_url
        self._engines = engines
        self._model_pid = model_pid

    def cpu(self) -> dict[str, float]:
        """Return CPU seconds by role and engine, the model's and the load's own among them."""
        used = {name: sum(map(cpu_seconds, pids)) for name, pids in self._pids().items()}
        return used | {"load": time.process_time()}

    def resident(self) -> int:
        """Return the resident memory of the processes that hold sockets, in bytes."""
        pids = self._pids()
        return sum(map(resident_bytes, pids.get("websocket-server") or pids["duologue"]))

    def _pids(self) -> dict[str, list[int]]:
        """Return the process ids by role, or program, and engine. Engines have children that come and go."""
        found: dict[str, list[int]] = {}
        for name, pid in self.system.pids().items():
            found.setdefault(name.rstrip("-0123456789"), []).append(pid)
            for child in descendants(pid):
                found.setdefault(program_of(child), []).append(child)
        for name, engine in self._engines.items():
            found[name] = [engine.pid, *descendants(engine.pid)]
        return found | {"model": [self._model_pid]}


@asynccontextmanager
async def bench(mode: Mode, model: Mapping[str, str], **settings: str) -> AsyncIterator[Bench]:
    """Start a system on fresh data with a model server of the given options."""
    port = free_port()
    options = [part for name, value in model.items() for part in (f"--{name}", value)]
    argv = [sys.executable, "-m", "duologue.cli", "mock-llm", "--port", str(port), *options]
    with tempfile.TemporaryDirectory(prefix="duologue-bench-", ignore_cleanup_errors=True) as folder:
        async with child_process(*argv, name="model", stdout=asyncio.subprocess.DEVNULL) as process:
            await _until_up(f"http://127.0.0.1:{port}/health")
            environment = {"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", **_NO_LIMITS, **settings}
            async with _system(mode, Path(folder), environment) as (system, engines):
                yield Bench(system, engines, process.pid, f"http://127.0.0.1:{port}")


@asynccontextmanager
async def _system(
    mode: Mode, folder: Path, environment: Mapping[str, str]
) -> AsyncIterator[tuple[System, Mapping[str, ServerProcess]]]:
    if mode == "embedded":
        async with embedded_system(folder / "data", environment) as embedded:
            yield embedded, {}
        return
    async with own_engines(lasting=True) as own, distributed_system(folder, own.shared(), environment) as distributed:
        engines = {"kafka": own.kafka, "valkey": own.valkey, "postgresql": own.postgres, "nginx": distributed.nginx}
        yield distributed, engines


async def _until_up(url: str) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(10):
        while True:
            try:
                async with session.get(url):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.01)


async def messages(*, mode: Mode = "embedded", rate: float, seconds: float, users: int, tokens: int) -> Figures:
    """Send short messages at a rate and measure what the system adds to the first token, the ack and the reply."""
    async with bench(mode, {"tokens": str(tokens)}, MAX_WORKERS="256") as running:
        crowd = await connect_users(running.system.url, running.system.ws_url, users, "bench")
        await _load(crowd, rate=rate, seconds=_WARM_UP_SECONDS[mode])
        return await _measured(running, crowd, rate=rate, seconds=seconds)


async def _load(crowd: Sequence[LoadUser], *, rate: float, seconds: float) -> tuple[int, int]:
    late = await send_at_rate(crowd, rate=rate, seconds=seconds, content="Hello there", seed=7)
    return late, await until_answered(crowd, _DRAIN_SECONDS)


async def _measured(running: Bench, crowd: Sequence[LoadUser], *, rate: float, seconds: float) -> Figures:
    for user in crowd:
        user.forget()
    before, began = running.cpu(), time.perf_counter()
    late, unanswered = await _load(crowd, rate=rate, seconds=seconds)
    elapsed, after = time.perf_counter() - began, running.cpu()
    exchanges = [exchange for user in crowd for exchange in user.measured()]
    answered = [exchange for exchange in exchanges if exchange.answered]
    return {
        "offered_per_second": rate,
        "messages": len(exchanges),
        "unanswered": unanswered,
        "late_sends": late,
        "drained_after_seconds": round(elapsed - seconds, 2),
        "ack_ms": percentiles([e.acked - e.sent for e in exchanges if e.acked]),
        "first_token_ms": percentiles([e.first_delta - e.sent for e in exchanges if e.first_delta]),
        "reply_ms": percentiles([e.answered - e.sent for e in answered]),
        "cpu_ms_per_message": {
            name: round((after[name] - before[name]) * 1000 / max(len(exchanges), 1), 3) for name in before
        },
        **faults(crowd, exchanges),
    }


def faults(crowd: Sequence[LoadUser], exchanges: Sequence[Any]) -> Figures:
    """Count what must not be: doubled or failed replies, gaps in a reply's pieces, texts that differ."""
    errors: dict[str, int] = {}
    for user in crowd:
        for code, count in user.errors.items():
            errors[code] = errors.get(code, 0) + count
    return {
        "doubled": sum(1 for e in exchanges if e.responses > 1),
        "failed": sum(e.failures for e in exchanges),
        "gaps": sum(e.gaps for e in exchanges),
        "mismatched": sum(e.mismatches for e in exchanges),
        "errors": errors,
    }


async def sustained(
    *, mode: Mode = "embedded", start: float, step: float, seconds: float, users: int, tokens: int
) -> Figures:
    """Raise the rate step by step until p99 of the first token passes 1 s or something is left unanswered."""
    steps: list[Figures] = []
    async with bench(mode, {"tokens": str(tokens)}, MAX_WORKERS="256") as running:
        crowd = await connect_users(running.system.url, running.system.ws_url, users, "bench")
        await _load(crowd, rate=start / 2, seconds=_WARM_UP_SECONDS[mode])
        rate, good = start, 0.0
        while True:
            figures = await _measured(running, crowd, rate=rate, seconds=seconds)
            steps.append(figures)
            if figures["unanswered"] or figures["first_token_ms"]["p99"] > 1000 or figures["drained_after_seconds"] > 2:
                return {"sustained_per_second": good, "steps": steps}
            good, rate = rate, rate + step


async def streams(*, mode: Mode = "embedded", count: int, tokens_per_second: float, seconds: float) -> Figures:
    """Let many replies stream at once and measure how late their pieces arrive."""
    tokens = int(tokens_per_second * seconds)
    model = {"tokens": str(tokens), "tps": str(tokens_per_second)}
    async with bench(mode, model, MAX_WORKERS=str(count * 2)) as running:
        crowd = await connect_users(running.system.url, running.system.ws_url, count, "bench")
        async with aiohttp.ClientSession() as session:
            await session.post(f"{running.model_url}/config", json={"stamp": True})
        before = running.cpu()
        for user in crowd:
            user.send("Tell me a long story")
            await asyncio.sleep(1 / count)
        unanswered = await until_answered(crowd, seconds * 3 + _DRAIN_SECONDS)
        after = running.cpu()
        delays = [delay for user in crowd for delay in user.delta_delays]
        exchanges = [exchange for user in crowd for exchange in user.measured()]
        return {
            "streams": count,
            "tokens_per_second_each": tokens_per_second,
            "unanswered": unanswered,
            "delta_delay_ms": percentiles(delays),
            "deltas_per_reply": round(sum(e.deltas for e in exchanges) / max(len(exchanges), 1), 1),
            "cpu_us_per_token": {n: round((after[n] - before[n]) * 1e6 / (count * tokens), 1) for n in before},
            **faults(crowd, exchanges),
        }


async def idle(*, mode: Mode = "embedded", sockets: int) -> Figures:
    """Open sockets that do nothing and see what memory they hold."""
    async with bench(mode, {}) as running:
        await connect_users(running.system.url, running.system.ws_url, 50, "warm")
        before = running.resident()
        crowd = await connect_users(running.system.url, running.system.ws_url, sockets, "bench")
        await asyncio.sleep(2)  # what connecting needed for a moment is given back
        held = running.resident() - before
        began, cpu = time.perf_counter(), running.cpu()
        await asyncio.sleep(10)
        used = (sum(running.cpu().values()) - sum(cpu.values())) / (time.perf_counter() - began)
        return {
            "sockets": len(crowd),
            "memory_per_socket_kib": round(held / sockets / 1024, 1),
            "idle_cpu_percent": round(used * 100, 1),
        }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p95, p99 and the largest of durations, in milliseconds."""
    ordered = sorted(seconds)
    if not ordered:
        return {"p50": 0.0, "p95": 0.0, "p99": 0.0, "max": 0.0}
    at = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
    found = {name: ordered[min(int(len(ordered) * share), len(ordered) - 1)] for name, share in at.items()}
    return {name: round(value * 1000, 2) for name, value in (found | {"max": ordered[-1]}).items()}
