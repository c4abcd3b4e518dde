"""Reports of runs that nobody has made, for tests of what is made from reports."""

from __future__ import annotations

from typing import Any

import msgspec

from duologue.bench.machine import Machine
from duologue.bench.options import Messages, parameters
from duologue.bench.report.model import Hop, Latency, Report, Second, Step


def latency(p50: float = 5.0, p99: float = 20.0) -> Latency:
    return Latency(count=100, p50=p50, p95=(p50 + p99) / 2, p99=p99, p99_9=p99 * 1.5, max=p99 * 2)


def second(at: float, **changes: Any) -> Second:
    values: dict[str, Any] = {
        "sent": 100,
        "answered": 99,
        "in_flight": 3,
        "first_token_p50": 5.0,
        "first_token_p99": 20.0,
        "delta_delay_p50": None,
        "delta_delay_p99": None,
        "cpu_percent": {"duologue": 40.0, "load": 8.0},
    }
    return Second(at=at, **(values | changes))


def step(name: str = "100 messages/s", **changes: Any) -> Step:
    values: dict[str, Any] = {
        "seconds": 30.0,
        "offered_per_second": 100.0,
        "sent": 3000,
        "acked": 3000,
        "answered": 3000,
        "drained_after_seconds": 0.1,
        "latencies": {"first_token": latency(), "ack": latency(2.0, 5.0)},
        "cpu_ms_per_message": {"duologue": 3.0, "valkey": 1.0, "load": 0.4},
        "cpu_ms_per_message_beyond_idle": {"duologue": 2.9, "valkey": 0.9, "load": 0.4},
        "bytes_per_message": {"duologue": Hop(to_server=200.0, from_server=2000.0)},
        "load_core_share": 0.05,
        "series": [second(1.0), second(2.0), second(3.0)],
    }
    return Step(name=name, **(values | changes))


def report(*steps: Step, **changes: Any) -> Report:
    whole = Report(
        scenario="messages",
        mode="embedded",
        parameters=parameters(Messages()),
        processes={"duologue": 1, "valkey": 1, "model": 1},
        arguments="duologue bench messages",
        seed=1,
        began=1_700_000_000.0,
        seconds=40.0,
        version="0.1.0",
        commit="abc",
        machine=Machine(
            cores=2, processor="EPYC <b>", memory_gib=8.0, kernel="Linux 6", open_files=1024, python="3.11.7"
        ),
        idle_cpu_percent={"duologue": 2.0},
        figures={},
        steps=list(steps) or [step()],
        evidence=[],
        notes=[],
    )
    return msgspec.structs.replace(whole, **changes)
