"""Who is there: every process announces its roles in Redis, and whoever asks reads them all.

One hash of one name, which a cluster keeps in one place. Times in it are those of Redis, so that no two clocks have to
agree. Losing it costs nothing: every process writes itself anew within `HEARTBEAT_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import structlog

from duologue import __version__
from duologue.domain.clock import Clock, wall_clock
from duologue.domain.errors import DuologueError
from duologue.engines.redis import Argument, Redis, Script
from duologue.observability.metrics import LOOP_FAILURES

_log = structlog.get_logger(__name__)

HEARTBEAT_SECONDS: Final = 5.0
UNREADY_HEARTBEAT_SECONDS: Final = 1.0
"""While a process is not ready, so that it is soon known when it is."""
LOST_MS: Final = 15_000
"""Silence after which a process counts as lost."""
FORGOTTEN_MS: Final = 3_600_000
LOST_KEPT: Final = 64

_KEY: Final = "roster:{duologue}"
_ANNOUNCE: Final = Script.from_file(Path(__file__).parent / "roster.lua")

State = Literal["ready", "not_ready", "draining", "lost"]
Counts = Callable[[], Mapping[str, int]]


class Announced(msgspec.Struct, frozen=True, kw_only=True):
    """What a process says of one of its roles. `failing` names the checks for which it is not ready."""

    role: str
    server_id: str
    version: str
    started_at: int
    """Milliseconds since the Unix epoch."""
    state: str
    failing: Sequence[str] = ()
    counts: Mapping[str, int] = {}


class Present(msgspec.Struct, frozen=True, kw_only=True):
    """A role of a process as the roster has it. Of one that is lost, `announced` is what it said last."""

    announced: Announced
    seen_ms_ago: int

    @property
    def state(self) -> str:
        """What it said of itself, or `lost` if it has been silent for too long."""
        return "lost" if self.seen_ms_ago > LOST_MS else self.announced.state


class Roster:
    """Reads who is there."""

    scripts: Final = (_ANNOUNCE,)

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def present(self) -> list[Present]:
        """Return every role of every process that is known, by role and then by process; lost ones for an hour.

        Raises:
            RedisUnavailable: nobody can tell now.
        """
        time, entries = await asyncio.gather(self._redis.call("TIME"), self._redis.call("HGETALL", _KEY))
        now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
        present = [found for entry in entries[1::2] if (found := _present(entry, now_ms)) is not None]
        return sorted(present, key=lambda each: (each.announced.role, each.announced.server_id))


def _present(entry: bytes, now_ms: int) -> Present | None:
    """Read an entry; one that a newer version writes in a form unknown here is passed over."""
    seen, _, text = entry.partition(b" ")
    try:
        announced = msgspec.json.decode(text, type=Announced)
        return Present(announced=announced, seen_ms_ago=max(0, now_ms - int(seen)))
    except (msgspec.MsgspecError, ValueError):
        return None


class Announcement:
    """Keeps the roles of this process in the roster: to be run beside them, and to be drained after them.

    It never stands in their way: while Redis is away it tries on, and nothing else happens.
    """

    name: Final = "roster"

    def __init__(
        self,
        redis: Redis,
        *,
        server_id: str,
        roles: Mapping[str, Counts],
        failing: Callable[[], Awaitable[Sequence[str]]],
        clock: Clock = wall_clock,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        """Announce in `redis`.

        Args:
            redis: where the roster is.
            server_id: this process's name.
            roles: the names of its roles, each with what returns the counts to show of it (`dict` for none).
            failing: returns the names of the checks that do not pass; none: this process is ready.
            clock: milliseconds since the Unix epoch.
            heartbeat_seconds: how often it is announced that nothing has changed.
        """
        self._redis = redis
        self._server_id = server_id
        self._roles = roles
        self._failing = failing
        self._started_at = clock()
        self._heartbeat_seconds = heartbeat_seconds
        self._draining = False
        self._over = False
        self._wake = asyncio.Event()
        self._heard = True

    def begin_drain(self) -> None:
        """Say at once that this process takes nothing new."""
        self._draining = True
        self._wake.set()

    async def run(self) -> None:
        """Announce until `drain`, then take the entries out. Cancelled, it leaves them, to be seen as lost."""
        while not self._over:
            pause = await self._announce()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            self._wake.clear()
        await self._leave()

    async def drain(self, _deadline_seconds: float) -> None:
        """Make `run` take its leave and return."""
        self._over = True
        self._wake.set()

    async def _announce(self) -> float:
        """Announce once; return the seconds to the next time."""
        try:
            state, failing = await self._state()
            await self._write(state, failing)
        except DuologueError as error:
            if self._heard:
                _log.warning("roster_unavailable", error=str(error))
            self._heard = False
            return self._heartbeat_seconds
        except Exception:  # noqa: BLE001  # the edge of this loop: what is only for show must not end the process
            LOOP_FAILURES.labels(self.name).inc()
            _log.exception("announcement_failed")
            return self._heartbeat_seconds
        self._heard = True
        return (
            self._heartbeat_seconds if state != "not_ready" else min(UNREADY_HEARTBEAT_SECONDS, self._heartbeat_seconds)
        )

    async def _state(self) -> tuple[State, Sequence[str]]:
        failing = () if self._draining else await self._failing()
        if self._draining:  # since then, perhaps
            return "draining", ()
        return ("not_ready" if failing else "ready"), failing

    async def _write(self, state: State, failing: Sequence[str]) -> None:
        arguments: list[Argument] = [LOST_MS, FORGOTTEN_MS, LOST_KEPT]
        for role, counts in self._roles.items():
            announced = Announced(
                role=role,
                server_id=self._server_id,
                version=__version__,
                started_at=self._started_at,
                state=state,
                failing=failing,
                counts=counts(),
            )
            arguments += (self._field(role), msgspec.json.encode(announced))
        await self._redis.run(_ANNOUNCE, (_KEY,), arguments)

    async def _leave(self) -> None:
        fields: list[Any] = [self._field(role) for role in self._roles]
        try:
            await self._redis.call("HDEL", _KEY, *fields)
        except DuologueError as error:
            _log.info("roster_not_left", error=str(error))

    def _field(self, role: str) -> str:
        return f"{role}/{self._server_id}"
