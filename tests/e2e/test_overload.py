"""Many more messages than the model can answer: refused at once or answered, and the system is well afterwards."""

from __future__ import annotations

import asyncio
import statistics

import pytest
from tests.support.model_server import ModelServer
from tests.support.users import unique

from duologue.bench.load import LoadUser, connect_users, send_at_rate, until_answered
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


async def _accepted_again(user: LoadUser) -> None:
    async with asyncio.timeout(20):
        while True:
            before = len(user.refusals)
            user.send("Hello again")
            await until_answered([user], 10.0, refused=True)
            if len(user.refusals) == before:
                return
            await asyncio.sleep(0.2)


async def test_messages_far_beyond_what_is_sustained_are_refused_at_once_or_answered_once(
    system: System, model_server: ModelServer
) -> None:
    await model_server.configure(tokens=4, tps=20.0)
    users = await connect_users(system.url, system.ws_url, 20, unique("load"))

    await send_at_rate(users, rate=150.0, seconds=4.0, content="Hello", seed=1)
    left = await until_answered(users, 40.0, refused=True)

    exchanges = [exchange for user in users for exchange in user.measured() if exchange.acked]
    refusals = [seconds for user in users for seconds in user.refusals.values()]
    assert left == 0
    assert {code for user in users for code in user.errors} == {"overloaded"}
    assert len(refusals) > len(exchanges) > 20
    assert statistics.median(refusals) < 0.5
    assert {(each.responses, each.failures, each.gaps, each.mismatches) for each in exchanges} == {(1, 0, 0, 0)}
    await _accepted_again(users[0])
