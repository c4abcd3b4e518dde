"""The benchmark runs, and checks what it measures."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from duologue.bench.scenarios import percentiles


async def _figures(*arguments: str) -> dict[str, object]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "duologue.bench", *arguments, "--json", stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(100):
        output, _ = await process.communicate()
    assert process.returncode == 0
    figures: dict[str, object] = json.loads(output)
    return figures


async def test_messages_scenario_on_a_system_of_its_own_finds_every_message_answered_once() -> None:
    figures = await _figures("messages", "--rate", "20", "--seconds", "2", "--users", "5")
    assert isinstance(figures["messages"], int)
    assert figures["messages"] > 10
    assert [figures[name] for name in ("unanswered", "doubled", "failed", "gaps", "mismatched")] == [0] * 5
    assert figures["errors"] == {}


async def test_streams_scenario_on_a_system_of_its_own_measures_every_piece() -> None:
    figures = await _figures("streams", "--count", "5", "--tokens-per-second", "20", "--seconds", "1")
    assert [figures[name] for name in ("unanswered", "doubled", "failed", "gaps", "mismatched")] == [0] * 5
    delays = figures["delta_delay_ms"]
    assert isinstance(delays, dict)
    assert delays["max"] > 0


@pytest.mark.parametrize(("share", "expected"), [("p50", 50_000.0), ("p99", 99_000.0), ("max", 100_000.0)])
def test_percentiles_of_seconds_are_in_milliseconds(share: str, expected: float) -> None:
    assert percentiles([float(number) for number in range(1, 101)])[share] == pytest.approx(expected, rel=0.02)
