"""The benchmark runs, and tells what it has seen."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.support.model_server import ModelServer

from duologue.bench.mock_llm import MockConfig
from duologue.bench.model_server import ModelServer as BenchModel
from duologue.bench.report.model import Report, read_report
from duologue.bench.system import EmbeddedSystem

_QUICK = ("--idle-seconds", "0.2", "--warm-up-seconds", "0.3")


async def _bench(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the command; return its exit code, what it printed, and what it printed to the error stream."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "duologue.cli", "bench", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | environment,
    )
    async with asyncio.timeout(100):
        output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def _report(folder: Path, *arguments: str, **environment: str) -> Report:
    code, output, errors = await _bench(*arguments, "--report", str(folder), **environment)
    assert code == 0, output + errors
    return _written(folder)


def _written(folder: Path) -> Report:
    [written] = folder.glob("*.json")
    assert written.with_suffix(".html").read_text().startswith("<!doctype html>")
    return read_report(written)


async def test_messages_on_a_system_of_its_own_are_all_answered_on_every_device_across_reconnects(
    tmp_path: Path,
) -> None:
    load = ("--rate", "20", "--seconds", "3", "--users", "5", "--devices", "2", "--turns", "4")
    report = await _report(tmp_path, "messages", *load, "--reconnects-per-minute", "60", *_QUICK)
    [step] = report.steps
    assert step.sent > 30
    assert (step.answered, step.unanswered, step.breaches) == (step.sent, 0, {})
    assert step.reconnects > 0
    assert {"first_token", "ack", "reply", "attach"} <= step.latencies.keys()
    assert {"duologue", "load"} <= step.cpu_ms_per_message.keys()
    assert len(step.series) >= 2
    assert (report.mode, report.idle_cpu_percent.keys() >= {"duologue"}) == ("embedded", True)


async def test_history_on_a_system_of_its_own_compares_long_conversations_with_short_ones(tmp_path: Path) -> None:
    load = ("--users", "2", "--long", "200", "--short", "10", "--rate", "10", "--seconds", "1")
    report = await _report(tmp_path, "history", *load, "--attaches", "2", "--pages", "2", *_QUICK)
    short, long = report.steps
    assert [step.latencies["page"].count for step in (short, long)] == [4, 4]
    assert [step.latencies["attach"].count for step in (short, long)] == [4, 4]
    assert report.figures["page_p50_times"] > 0


async def test_running_system_is_loaded_by_its_url_without_figures_of_its_processes(
    embedded: EmbeddedSystem, model_server: ModelServer, tmp_path: Path
) -> None:
    where = ("--url", embedded.url, "--model-url", model_server.root)
    load = ("--users", "4", "--tokens", "20", "--tokens-per-second", "20", *_QUICK)
    report = await _report(tmp_path, "streams", *load, *where, JWT_SECRET=embedded.jwt_secret)
    [step] = report.steps
    assert (report.mode, step.answered, step.latencies["delta_delay"].count) == ("running", 4, 80)
    assert report.figures["deltas_per_reply"] > 1
    assert step.cpu_ms_per_message.keys() == {"load"}
    assert any("not known" in note for note in report.notes)
    assert embedded.jwt_secret not in report.arguments
    assert await BenchModel(model_server.root).configure({}) == MockConfig(record=True)  # set back to what it was


async def test_hot_user_and_storm_on_a_running_system_break_nothing(
    embedded: EmbeddedSystem, model_server: ModelServer, tmp_path: Path
) -> None:
    where = ("--url", embedded.url, "--model-url", model_server.root, "--jwt-secret", embedded.jwt_secret)
    hot = ("--users", "5", "--rate", "10", "--hot-rate", "40", "--seconds", "2")
    report = await _report(tmp_path / "hot", "one-hot-user", *hot, *where, *_QUICK)
    assert report.figures["hot_answered"] + report.figures["hot_refused"] == report.figures["hot_sent"] > 40
    storm = ("--users", "10", "--talking", "0.5", "--tokens", "20", "--storms", "1")
    report = await _report(tmp_path / "storm", "reconnect-storm", *storm, *where)
    assert report.steps[0].latencies["attach"].count == 10
    assert (report.steps[0].answered, report.steps[0].breaches) == (5, {})


async def test_wrong_secret_is_told_in_words(embedded: EmbeddedSystem) -> None:
    code, _, errors = await _bench("messages", "--url", embedded.url, "--jwt-secret", "x" * 40)
    assert code == 2
    assert "does not accept tokens" in errors
    assert "x" * 40 not in errors


async def test_report_as_json_is_all_that_is_printed(embedded: EmbeddedSystem) -> None:
    load = ("--rate", "20", "--seconds", "1", "--users", "5", *_QUICK)
    code, output, _ = await _bench("messages", *load, "--url", embedded.url, "--json", JWT_SECRET=embedded.jwt_secret)
    printed: dict[str, Any] = json.loads(output)
    assert (code, printed["schema"], printed["scenario"]) == (0, 1, "messages")
