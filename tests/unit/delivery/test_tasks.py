"""Tasks end with their owner, and a failure neither passes unseen nor stops a loop."""

from __future__ import annotations

import asyncio

import pytest

from duologue.delivery import tasks as module
from duologue.delivery.tasks import Tasks
from duologue.observability import metrics


def _failures(name: str) -> float:
    return float(metrics.LOOP_FAILURES.labels(name)._value.get())


async def test_aclose_with_tasks_running_cancels_and_awaits_them() -> None:
    tasks = Tasks("test")
    task = tasks.spawn(asyncio.sleep(3600))

    await tasks.aclose()

    assert task.cancelled()


async def test_loop_whose_step_fails_reports_it_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0)
    tasks, again, calls = Tasks("test_loop"), asyncio.Event(), 0

    async def step() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("unexpected")
        again.set()
        await asyncio.sleep(3600)

    tasks.spawn_loop(step)
    await asyncio.wait_for(again.wait(), 10)
    await tasks.aclose()

    assert _failures("test_loop") == 1


async def test_task_that_fails_is_reported() -> None:
    tasks = Tasks("test_task")

    async def fail() -> None:
        raise RuntimeError("unexpected")

    tasks.spawn(fail())
    await tasks.joined()
    await asyncio.sleep(0)

    assert _failures("test_task") == 1
