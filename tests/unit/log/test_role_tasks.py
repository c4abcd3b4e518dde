"""The tasks of one run of a role."""

from __future__ import annotations

import asyncio

import pytest

from duologue.domain.errors import ConsumerRefused
from duologue.log.role_tasks import role_tasks


async def test_body_that_ends_cancels_its_tasks_and_those_spawned_by_them() -> None:
    ended: list[str] = []

    async def sleep_on(name: str) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(name)

    async def spawn_at_the_end() -> None:
        try:
            await sleep_on("first")
        finally:
            tasks.spawn(sleep_on("second"))

    async with role_tasks() as tasks:
        tasks.spawn(spawn_at_the_end())
        await asyncio.sleep(0)
    assert ended == ["first"]


async def test_task_that_fails_ends_the_body_with_its_own_error() -> None:
    async def fail() -> None:
        raise ConsumerRefused("there is another")

    async def run() -> None:
        async with role_tasks() as tasks:
            tasks.spawn(fail())
            await asyncio.sleep(3600)

    with pytest.raises(ConsumerRefused):
        await run()
