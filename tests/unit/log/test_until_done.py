"""Repeating what must happen once."""

from __future__ import annotations

import pytest

from duologue.domain.errors import LogUnavailable, RecordUnreadable
from duologue.log.until_done import until_done


async def test_call_that_fails_for_now_is_repeated() -> None:
    calls = 0

    async def call() -> str:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise LogUnavailable("away")
        return "done"

    assert await until_done(call, what="test") == "done"
    assert calls == 3


async def test_call_that_fails_for_good_is_not_repeated() -> None:
    async def call() -> None:
        raise RecordUnreadable("never")

    with pytest.raises(RecordUnreadable):
        await until_done(call, what="test")
