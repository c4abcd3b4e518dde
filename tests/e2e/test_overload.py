"""Many more messages than the model can answer: refused at once or answered, and the system is well afterwards."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.support.model_server import ModelServer

from duologue.bench.load.crowd import Crowd, Entrance, crowd, names_of
from duologue.bench.system import System


@pytest.fixture
def system_settings() -> dict[str, str]:
    """Two replies at once, and a wait of one second at most."""
    return {
        "MAX_WORKERS": "2",
        "OVERLOAD_SECONDS": "1",
        "USER_RATE_LIMIT_MAX_REQUESTS": "10000",
        "TOKEN_RATE_LIMIT_MAX_REQUESTS": "10000",
    }


async def _accepted_again(users: Crowd) -> None:
    async with asyncio.timeout(20):
        while True:
            recorder = users.begin_phase()
            users.send("Hello again", time.perf_counter())
            await users.settled(10.0)
            if recorder.answered:
                return
            await asyncio.sleep(0.2)


async def test_messages_far_beyond_what_is_sustained_are_refused_at_once_or_answered_once(
    system: System, model_server: ModelServer
) -> None:
    await model_server.configure(tokens=4, tps=20.0)
    async with crowd(Entrance(system.url, system.ws_url, system.jwt_secret), names_of(20, "load")) as users:
        await users.send_at_rate(150.0, 4.0, seed=1)
        left = await users.until_answered(40.0)

        seen = users.recorder
        assert left == 0
        assert set(seen.errors) == {"overloaded"}
        assert not seen.breaches, seen.evidence
        assert seen.answered == seen.acked
        assert seen.refused > seen.answered > 20
        assert seen.histograms["refusal"].percentile(0.5) < 0.5
        await _accepted_again(users)
