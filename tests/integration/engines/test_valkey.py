"""The bundled Valkey: ready at once, alone with its data, started again, gone with its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from duologue.domain.errors import RedisUnavailable, StartRefused
from duologue.engines.redis import Redis
from duologue.engines.valkey import bundled_valkey

_RUN = """
import asyncio, sys
from pathlib import Path
from duologue.engines.valkey import bundled_valkey

async def main() -> None:
    async with bundled_valkey(Path(sys.argv[1])) as url:
        print(url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data folder with a short name: it holds the socket."""
    with tempfile.TemporaryDirectory(prefix="duologue-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


async def test_bundled_valkey_answers_when_the_context_is_open(data_dir: Path) -> None:
    async with bundled_valkey(data_dir) as url, Redis(url, name="test") as redis:
        assert await redis.call("PING") == b"PONG"
        for name, value in {"appendonly": b"yes", "appendfsync": b"always", "maxmemory-policy": b"noeviction"}.items():
            assert (await redis.call("CONFIG", "GET", name))[1] == value
    assert (data_dir / "valkey").stat().st_mode & 0o777 == 0o700


async def test_bundled_valkey_left_has_ended_and_keeps_its_data(data_dir: Path) -> None:
    async with bundled_valkey(data_dir) as url, Redis(url, name="test") as redis:
        await redis.call("SET", "key", "value")
        pid = await _pid(redis)
    assert not _runs(pid)
    async with bundled_valkey(data_dir) as url, Redis(url, name="test") as redis:
        assert await redis.call("GET", "key") == b"value"


async def test_bundled_valkey_killed_is_started_again_with_its_data(data_dir: Path) -> None:
    async with bundled_valkey(data_dir) as url, Redis(url, name="test") as redis:
        for n in range(3):
            await redis.call("SET", "key", n)
            os.kill(await _pid(redis), signal.SIGKILL)
            async with asyncio.timeout(10):
                assert await _get_patiently(redis, "key") == str(n).encode()


async def test_bundled_valkey_parent_killed_successor_has_all_that_was_acknowledged(data_dir: Path) -> None:
    for round_ in range(3):
        with _parent_of_one(data_dir) as parent:
            assert parent.stdout is not None
            url = (await asyncio.to_thread(parent.stdout.readline)).strip()
            async with Redis(url, name="test") as redis:
                for _ in range(200):
                    await redis.call("INCR", "count")
                parent.send_signal(signal.SIGKILL)
        async with bundled_valkey(data_dir) as url, Redis(url, name="test") as redis:
            assert await redis.call("GET", "count") == str(200 * (round_ + 1)).encode()


async def test_bundled_valkey_waits_until_an_earlier_one_has_ended(data_dir: Path) -> None:
    async with bundled_valkey(data_dir) as url, Redis(url, name="test") as redis:
        await redis.call("SET", "key", "value")
        pid = await _pid(redis)
        os.kill(pid, signal.SIGSTOP)  # one that is slow to end
        later = asyncio.create_task(_value_of_another(data_dir))
        done, _ = await asyncio.wait({later}, timeout=0.3)
        assert not done
        os.kill(pid, signal.SIGCONT)
    async with asyncio.timeout(10):
        assert await later == b"value"


async def test_bundled_valkey_cannot_read_its_data_is_refused_with_the_reason(data_dir: Path) -> None:
    async with bundled_valkey(data_dir) as url, Redis(url, name="test") as redis:
        await redis.call("SET", "key", "value")
        await redis.call("SET", "key", "value")
    [file] = (data_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
    file.write_bytes(b"x" * 10 + file.read_bytes())
    with pytest.raises(StartRefused, match="Bad file format"):
        async with bundled_valkey(data_dir):
            pass


async def test_bundled_valkey_last_write_cut_off_starts_without_it(data_dir: Path) -> None:
    async with bundled_valkey(data_dir) as url, Redis(url, name="test") as redis:
        await redis.call("SET", "key", "first")
        await redis.call("SET", "key", "second")
    [file] = (data_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
    file.write_bytes(file.read_bytes()[:-3])
    async with bundled_valkey(data_dir) as url, Redis(url, name="test") as redis:
        assert await redis.call("GET", "key") == b"first"


async def test_bundled_valkey_long_folder_name_has_its_socket_elsewhere(data_dir: Path) -> None:
    folder = data_dir / ("x" * 120)
    folder.mkdir()
    async with bundled_valkey(folder) as url, Redis(url, name="test") as redis:
        socket = Path(url.removeprefix("unix://"))
        assert folder not in socket.parents
        assert await redis.call("PING") == b"PONG"
    assert not socket.parent.exists()


def _parent_of_one(data_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _RUN, str(data_dir)], stdout=subprocess.PIPE, text=True)


async def _value_of_another(data_dir: Path) -> object:
    async with bundled_valkey(data_dir) as url, Redis(url, name="another") as redis:
        return await redis.call("GET", "key")


async def _pid(redis: Redis) -> int:
    info: bytes = await redis.call("INFO", "server")
    return next(int(line[11:]) for line in info.splitlines() if line.startswith(b"process_id:"))


async def _get_patiently(redis: Redis, key: str) -> object:
    while True:
        try:
            return await redis.call("GET", key)
        except RedisUnavailable:
            await asyncio.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
