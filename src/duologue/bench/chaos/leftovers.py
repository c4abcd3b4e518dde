"""What is still there after a quiet time: tasks, files, sockets and work in the processes, keys in Redis."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from duologue.bench.chaos.history import Leftover
from duologue.bench.chaos.plan import role_of
from duologue.bench.chaos.subject import Subject, metrics_of
from duologue.engines.redis import Redis

Baseline = Mapping[str, Mapping[str, float]]
"""Metrics of a role before the first client came."""

_IDLE: Final = {
    "duologue_connections": "socket",
    "duologue_replies_running": "work",
    "duologue_pending_messages": "work",
}
"""Metrics that are 0 when nobody is there and nothing is to be done."""

_MAY_GROW: Final = {"process_open_fds": ("file", 32), "duologue_tasks": ("task", 8)}
"""Metrics that grow by the pools and caches that the first work fills, by so much at most, whatever the load was."""

_LASTING_KEYS: Final = re.compile(r"(duologue:)?(log|stream|cursor|lock|roster|group)[:{].*|roster.*")
_SCAN_COUNT: Final = 1000


async def baseline(subject: Subject) -> Baseline:
    """Return what the metrics are while nobody is there, by role."""
    return {role_of(name): await metrics_of(process) for name, process in subject.processes().items()}


async def leftovers(subject: Subject, before: Baseline) -> list[Leftover]:
    """Return what should not be there now that nobody is."""
    found: list[Leftover] = []
    for name, process in subject.processes().items():
        found += compare(name, before[role_of(name)], await metrics_of(process))
    return found + await _keys(subject)


def compare(name: str, before: Mapping[str, float], now: Mapping[str, float]) -> list[Leftover]:
    """Return what a process has too much of."""
    found = [
        Leftover(kind=kind, where=name, detail=f"{metric} is {now[metric]:g}")  # type: ignore[arg-type]
        for metric, kind in _IDLE.items()
        if now.get(metric, 0) != 0
    ]
    for metric, (kind, room) in _MAY_GROW.items():
        if metric in now and metric in before and now[metric] > before[metric] + room:
            words = f"{metric} was {before[metric]:g} and is {now[metric]:g}"
            found.append(Leftover(kind=kind, where=name, detail=words))  # type: ignore[arg-type]
    return found


async def _keys(subject: Subject) -> list[Leftover]:
    found: list[Leftover] = []
    async with Redis(subject.redis_url, name="chaos") as redis:
        cursor = b"0"
        while True:
            cursor, keys = await redis.call("SCAN", cursor, "COUNT", _SCAN_COUNT)
            for key in keys:
                found += await _key(redis, key.decode())
            if cursor == b"0":
                return found


async def _key(redis: Redis, key: str) -> list[Leftover]:
    if key.startswith("live:"):
        return [Leftover(kind="key", where=key, detail="a live text that has no end")]
    found: list[Leftover] = []
    if key.startswith("state:"):
        fields = await redis.call("HKEYS", key)
        found += [
            Leftover(kind="key", where=f"{key} {field.decode()}", detail="a live text that has no end")
            for field in fields
            if field.startswith(b"l:")
        ]
    if _LASTING_KEYS.fullmatch(key) is None and await redis.call("PTTL", key) == -1:
        found.append(Leftover(kind="key", where=key, detail="it never expires"))
    return found
