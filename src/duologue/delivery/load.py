"""How the ai-consumers stand: each writes its figures into Redis once a second; whoever appends messages reads them.

One hash of one name, which a cluster keeps in one place. Times in it are those of Redis. Losing it costs nothing: every
consumer writes itself anew within `REPORT_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import structlog

from duologue.domain.errors import DuologueError
from duologue.engines.redis import Redis, Script
from duologue.observability.metrics import LOOP_FAILURES

_log = structlog.get_logger(__name__)

REPORT_SECONDS: Final = 1.0
"""How often figures are written, and read at most."""

_FORGOTTEN_MS: Final = 60_000
_KEY: Final = "load:{duologue-load}"
_REPORT: Final = Script.from_file(Path(__file__).parent / "load.lua")


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an ai-consumer says of itself.

    `waiting` counts what it holds and has not begun, `unread` what is on the log behind that, of its partitions.
    """

    consumer: str
    partitions: Sequence[int]
    waiting: int
    unread: int
    slots: int
    running: int
    wait_seconds: float
    """What a message that comes now waits for the beginning of its reply, if nothing else of its user waits."""
    backlog_seconds: float
    """What it would wait if all that waits came before it."""
    replies_per_second: float
    """How many replies it can end, all slots busy."""


class Standing(NamedTuple):
    """A report, and when it was written: milliseconds of Redis's clock."""

    report: LoadReport
    written_at: int


class LoadBoard:
    """Where the figures stand."""

    scripts: Final = (_REPORT,)

    def __init__(self, redis: Redis) -> None:
        """Use `redis`, which is to load `scripts`."""
        self._redis = redis

    def report(self, report: LoadReport) -> asyncio.Future[Any]:
        """Write a consumer's figures, in place of its last ones. Raises RedisUnavailable."""
        text = msgspec.json.encode(report)
        return self._redis.run(_REPORT, (_KEY,), (report.consumer, text, _FORGOTTEN_MS))

    async def read(self) -> list[Standing]:
        """Return the figures of every consumer of the last minute, the oldest first.

        Raises:
            RedisUnavailable: nobody can tell now.
        """
        entries = await self._redis.call("HGETALL", _KEY)
        standings = [found for entry in entries[1::2] if (found := _standing(entry)) is not None]
        return sorted(standings, key=lambda standing: standing.written_at)


async def keep_current(exchange: Callable[[], Awaitable[None]], *, failed: str) -> None:
    """Write or read figures every `REPORT_SECONDS` until cancelled. When it fails (event `failed` of the log), what was
    written or read last stands."""
    while True:
        try:
            await exchange()
        except DuologueError as error:
            _log.debug(failed, error=str(error))
        except Exception:  # noqa: BLE001 - the edge of this loop: reported, and tried again
            LOOP_FAILURES.labels("load").inc()
            _log.exception(failed)
        await asyncio.sleep(REPORT_SECONDS)


def _standing(entry: bytes) -> Standing | None:
    """Read an entry; one that a newer version writes in a form unknown here is passed over."""
    written, _, text = entry.partition(b" ")
    try:
        return Standing(msgspec.json.decode(text, type=LoadReport), int(written))
    except (msgspec.MsgspecError, ValueError):
        return None
