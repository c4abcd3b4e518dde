"""Child processes end with their context and with their parent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from duologue.engines import child
from duologue.engines.child import child_process

_DEADLINE = 10.0

_PARENT = """
import asyncio, os, signal, sys
from duologue.engines import child
child._LINUX = child._LINUX and sys.argv[1] == "kernel"

async def main():
    async with child.child_process("sleep", "100", name="test") as process:
        print(process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def _wait_until_gone(pid: int) -> None:
    """Return when a process that is not this one's child has ended, though nobody may have waited for it."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(_DEADLINE):
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def test_child_when_its_context_closes_is_terminated_and_awaited() -> None:
    async with child_process("sleep", "100", name="test") as process:
        assert process.returncode is None
    assert process.returncode == -signal.SIGTERM


async def test_child_that_ignores_sigterm_is_killed_after_the_grace_time() -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 1; done"
    async with child_process("sh", "-c", script, name="test", grace_seconds=0.05, stdout=asyncio.subprocess.PIPE) as it:
        assert it.stdout is not None
        await it.stdout.readline()
    assert it.returncode == -signal.SIGKILL


async def test_child_that_ended_by_itself_keeps_its_status() -> None:
    async with child_process("sh", "-c", "exit 7", name="test") as process:
        async with asyncio.timeout(_DEADLINE):
            await process.wait()
    assert process.returncode == 7


async def test_child_when_its_owner_is_cancelled_is_ended() -> None:
    started: asyncio.Future[asyncio.subprocess.Process] = asyncio.get_running_loop().create_future()

    async def own() -> None:
        async with child_process("sleep", "100", name="test") as process:
            started.set_result(process)
            await asyncio.Event().wait()

    owner = asyncio.create_task(own())
    process = await started
    owner.cancel()
    with pytest.raises(asyncio.CancelledError):
        await owner
    assert process.returncode == -signal.SIGTERM


async def test_child_of_a_program_that_does_not_exist_raises_an_os_error() -> None:
    with pytest.raises(OSError, match="no-such-program"):
        async with child_process("/no-such-program", name="test"):
            pass


async def test_child_gets_only_the_environment_it_is_given() -> None:
    pipe = asyncio.subprocess.PIPE
    async with child_process("/usr/bin/env", name="test", stdout=pipe, env={"ONLY": "this"}) as process:
        assert process.stdout is not None
        assert await process.stdout.read() == b"ONLY=this\n"


async def test_child_under_a_watchdog_ends_with_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_LINUX", False)
    async with child_process("sleep", "100", name="test") as process:
        pass
    assert process.returncode == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="watches the process by a pidfd")
@pytest.mark.parametrize("means", ["kernel", "watchdog"])
async def test_child_of_a_killed_parent_is_killed(means: str) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PARENT, means, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert await parent.wait() == -signal.SIGKILL
    await _wait_until_gone(pid)
