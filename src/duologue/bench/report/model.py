"""The report of one run. All else is made from it: tables, page, comparison."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import msgspec

from duologue.bench.histogram import Histogram
from duologue.bench.machine import Machine
from duologue.bench.report_files import write_files
from duologue.domain.errors import StartRefused

SCHEMA: Final = 1
"""Counts up when a field changes its meaning; a comparison needs two reports of the same."""

LATENCIES: Final = {
    "first_token": "added time to the first token",
    "ack": "ack",
    "reply": "whole reply, without the model's time",
    "delta_delay": "delay of a delta",
    "attach": "attach",
    "refusal": "refusal",
    "page": "page of the history",
    "first_piece_again": "kill to the first piece of the next attempt",
}
"""What durations are called by, in words."""


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """How durations are spread, in milliseconds."""

    count: int
    p50: float
    p95: float
    p99: float
    p99_9: float
    max: float


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a message on the way to a server, and from it."""

    to_server: float
    from_server: float


class Second(msgspec.Struct, frozen=True, kw_only=True):
    """One second of a step. `at`: of its end, in seconds since the step began; latencies of what came in it, in ms."""

    at: float
    sent: int
    answered: int
    in_flight: int
    first_token_p50: float | None
    first_token_p99: float | None
    delta_delay_p50: float | None
    delta_delay_p99: float | None
    cpu_percent: dict[str, float]
    """Of one core, by role and engine; of the load alone if the system's processes are not ours."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One phase of load, measured by itself.

    `late`: messages that left over 50 ms after they were due. `cpu_ms_per_message` counts all that a role or engine
    used until the last was answered; `cpu_ms_per_message_beyond_idle` without what it uses without load.
    """

    name: str
    seconds: float
    offered_per_second: float = 0.0
    sent: int = 0
    late: int = 0
    acked: int = 0
    answered: int = 0
    unanswered: int = 0
    refused: int = 0
    resent: int = 0
    reconnects: int = 0
    deltas: int = 0
    drained_after_seconds: float = 0.0
    errors: dict[str, int] = {}
    breaches: dict[str, int] = {}
    latencies: dict[str, Latency] = {}
    cpu_ms_per_message: dict[str, float] = {}
    cpu_ms_per_message_beyond_idle: dict[str, float] = {}
    cpu_us_per_delta: dict[str, float] = {}
    bytes_per_message: dict[str, Hop] = {}
    load_core_share: float = 0.0
    series: list[Second] = []


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of a run. `figures` are the scenario's own, with their unit in the name."""

    schema: int = SCHEMA
    scenario: str
    mode: str
    parameters: dict[str, Any]
    processes: dict[str, int]
    arguments: str
    seed: int
    began: float
    seconds: float
    version: str
    commit: str
    machine: Machine
    idle_cpu_percent: dict[str, float]
    figures: dict[str, float]
    steps: list[Step]
    evidence: list[str]
    notes: list[str]

    @property
    def breaches(self) -> dict[str, int]:
        """What must not be, and how often it was seen in all steps."""
        found: dict[str, int] = {}
        for step in self.steps:
            for name, count in step.breaches.items():
                found[name] = found.get(name, 0) + count
        return found

    @property
    def is_clean(self) -> bool:
        """Whether all was correct."""
        return not self.breaches


def latency(histogram: Histogram) -> Latency:
    """Return how durations are spread."""
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}
    found = {name: round(histogram.percentile(share) * 1000, 2) for name, share in shares.items()}
    return Latency(count=histogram.count, max=round(histogram.longest * 1000, 2), **found)


def read_report(path: Path) -> Report:
    """Read a report that was written. Raises StartRefused: it is none, or of another version."""
    try:
        raw = path.read_bytes()
        found = msgspec.json.decode(raw, type=dict[str, Any]).get("schema")
        if found != SCHEMA:
            raise StartRefused(f"{path}: its schema is {found}, this program reads {SCHEMA}")
        return msgspec.json.decode(raw, type=Report)
    except OSError as error:
        raise StartRefused(f"{path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise StartRefused(f"{path} is no report of `duologue bench`: {error}") from error


def write_report(report: Report, folder: Path, page: str) -> Path:
    """Write a report as JSON and as a page; return the JSON's path. Its name tells when the run began."""
    began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(report.began))
    return write_files(report, page, folder, f"bench-{report.scenario}-{report.mode}-{began}")
