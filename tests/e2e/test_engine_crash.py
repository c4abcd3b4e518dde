"""The bundled Valkey killed under a running system: log, streams and live texts go away and come back."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path

from tests.support.model_server import ModelServer
from tests.support.users import unique
from tests.support.witness import Witness, witness

from duologue.bench.system import EmbeddedSystem

_USERS = 6
_MESSAGES = 3


def _valkey_of(system: EmbeddedSystem) -> int:
    """Return the process id of the system's Valkey, a child of its process or of the child's own watchdog."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            except OSError:  # it has ended meanwhile
                continue
            pid = int(folder.name)
            names[pid], parents[pid] = name, int(rest.split()[1])
    found = [pid for pid, name in names.items() if "valkey" in name and _descends(pid, system.pid, parents)]
    assert len(found) == 1, found
    return found[0]


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != ancestor:
        pid = parents[pid]
    return pid == ancestor


async def test_valkey_killed_in_the_middle_of_replies_loses_and_doubles_nothing(
    embedded: EmbeddedSystem, model_server: ModelServer, tmp_path: Path
) -> None:
    await model_server.configure(tokens=40, tps=40, stamp=True, echo=True)
    async with AsyncExitStack() as stack:
        users = [
            await stack.enter_async_context(witness(embedded.url, unique(f"user{number}"), tmp_path))
            for number in range(_USERS)
        ]
        for number in range(_MESSAGES):
            for user in users:
                user.connection.send(f"{user.name} asks {number}", client_id=f"{user.name}-{number}")
        await model_server.until(lambda stats: stats["in_flight"] >= _USERS and stats["pieces"] > 100)
        first = _valkey_of(embedded)
        os.kill(first, signal.SIGKILL)
        await asyncio.gather(*(user.until_answered(_MESSAGES) for user in users))
        assert _valkey_of(embedded) != first
        for user in users:
            await _assert_kept(user)


async def _assert_kept(user: Witness) -> None:
    """What the client was told, what it shows, and what the store has are the same."""
    rows = await user.stored()
    assert len(user.acknowledged) == len(set(user.acknowledged.values())) == _MESSAGES
    assert set(user.outcomes.values()) == {1}, f"{user.name}: {user.outcomes}"
    assert not user.stale_frames
    assert len(user.event_ids) == len(set(user.event_ids))
    assert [row["content"] for row in rows if row["role"] == "user"] == [
        f"{user.name} asks {number}" for number in range(_MESSAGES)
    ]
    for client_id, message_id in user.acknowledged.items():
        (reply,) = [row for row in rows if row.get("reply_to") == message_id]
        shown = user.connection.view.by_client_id(client_id)
        assert shown is not None
        assert (reply["state"], shown.text) == ("complete", reply["content"])
        assert reply["content"].count(" asks ") == 1, "the text is doubled"
