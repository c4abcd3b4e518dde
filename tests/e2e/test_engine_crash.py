"""The bundled Valkey killed under a running system: log, streams and live texts go away and come back."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.support.crowd import crowd
from tests.support.model_server import ModelServer

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
    async with crowd(embedded.url, tmp_path, _USERS) as together:
        for _ in range(_MESSAGES):
            for user in together.users:
                user.say()
        await model_server.until(lambda stats: stats["in_flight"] >= _USERS and stats["pieces"] > 100)
        first = _valkey_of(embedded)
        os.kill(first, signal.SIGKILL)
        await together.assert_kept(model_server)
        assert _valkey_of(embedded) != first


async def test_valkey_that_hangs_for_seconds_loses_and_doubles_nothing(
    embedded: EmbeddedSystem, model_server: ModelServer, tmp_path: Path
) -> None:
    await model_server.configure(tokens=40, tps=40, stamp=True, echo=True)
    async with crowd(embedded.url, tmp_path, _USERS) as together:
        async with together.talking():
            await together.until_answered_more(_USERS)
            valkey = _valkey_of(embedded)
            os.kill(valkey, signal.SIGSTOP)
            await together.until(lambda: "service_unavailable" in together.refusals, "a refusal in words")
            os.kill(valkey, signal.SIGCONT)
            await together.until_answered_more(_USERS)
        await together.assert_kept(model_server)
        assert together.refusals == {"service_unavailable"}
        assert all(recovered for user in together.users for recovered in user.recovered)
        assert _valkey_of(embedded) == valkey
