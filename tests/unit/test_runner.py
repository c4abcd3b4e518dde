"""The runner: what starts, what ends it, and the order of the drain."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence

import pytest
from starlette.applications import Starlette

from duologue.config import Settings
from duologue.domain.errors import ConsumerRefused, OwnershipLost, StartRefused
from duologue.listener import bind
from duologue.open_files import raise_file_limit
from duologue.runner import Runner, http_server
from duologue.websocket_server.transport import SocketProtocol


class _Role:
    """A role that works until it is drained, and notes what happens."""

    def __init__(self, name: str, story: list[str], failures: Sequence[Exception] = ()) -> None:
        self.name = name
        self._story = story
        self._failures = list(failures)
        self._drained = asyncio.Event()
        self.may_drain = asyncio.Event()
        self.may_drain.set()

    async def run(self) -> None:
        self._story.append(f"{self.name} runs")
        if self._failures:
            raise self._failures.pop(0)
        await self._drained.wait()

    async def drain(self, deadline_seconds: float, /) -> None:
        self._story.append(f"{self.name} drains")
        await self.may_drain.wait()
        self._drained.set()


def _runner(
    roles: Sequence[_Role], story: list[str], on_ready: Callable[[], None] = lambda: None
) -> tuple[Runner, socket.socket]:
    listener = bind("127.0.0.1", 0)

    def ready() -> None:
        story.append("ready")
        on_ready()

    runner = Runner(
        roles=roles,
        server=http_server(Starlette(), Settings(), SocketProtocol),
        listener=listener,
        drain_seconds=5,
        on_ready=ready,
        on_drain=lambda: story.append("drain"),
    )
    return runner, listener


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


async def _run(runner: Runner, listener: socket.socket) -> None:
    with listener:
        async with asyncio.timeout(10):
            await runner.run()


async def test_runner_told_to_end_drains_its_roles_in_their_order() -> None:
    story: list[str] = []
    await _run(*_runner([_Role("first", story), _Role("second", story)], story, on_ready=_terminate))
    assert story == ["first runs", "second runs", "ready", "drain", "first drains", "second drains"]


class _Leaving(_Role):
    """A role that has something to say when it is drained."""

    async def run(self) -> None:
        await super().run()
        await asyncio.sleep(0.05)
        self._story.append(f"{self.name} has left")


async def test_runner_lets_a_drained_role_take_its_leave_before_the_next_is_drained() -> None:
    story: list[str] = []
    await _run(*_runner([_Leaving("first", story), _Leaving("second", story)], story, on_ready=_terminate))
    assert story[-4:] == ["first drains", "first has left", "second drains", "second has left"]


async def test_runner_told_twice_ends_at_once() -> None:
    story: list[str] = []
    role = _Role("slow", story)
    role.may_drain.clear()

    def twice() -> None:
        _terminate()
        asyncio.get_running_loop().call_later(0.05, _terminate)

    await _run(*_runner([role], story, on_ready=twice))
    assert story[-1] == "slow drains"


async def test_role_that_cannot_go_on_now_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duologue.runner._RESTART_SECONDS", 0.01)
    story: list[str] = []
    role = _Role("owner", story, failures=[OwnershipLost("another one owns it")])

    def once_it_runs_again() -> None:
        loop = asyncio.get_running_loop()
        if story.count("owner runs") == 2:
            _terminate()
        else:
            loop.call_later(0.01, once_it_runs_again)

    await _run(*_runner([role], story, on_ready=once_it_runs_again))
    assert story.count("owner runs") == 2
    assert story[-1] == "owner drains"


async def test_role_that_never_can_go_on_ends_the_process_after_draining_the_others() -> None:
    story: list[str] = []
    refused = _Role("refused", story, failures=[ConsumerRefused("there is one")])
    with pytest.raises(ConsumerRefused):
        await _run(*_runner([refused, _Role("other", story)], story))
    assert "other drains" in story


def test_address_in_use_is_refused_in_words() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(StartRefused, match=r"cannot listen on 127\.0\.0\.1:\d+: .*in use"):
            bind("127.0.0.1", taken.getsockname()[1])


def test_address_of_another_machine_is_refused_in_words() -> None:
    with pytest.raises(StartRefused, match="cannot listen on"):
        bind("192.0.2.1", 1)


def test_raise_file_limit_low_soft_limit_is_raised_as_far_as_it_may() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = 256 if before[0] == resource.RLIM_INFINITY else min(256, before[0])
    resource.setrlimit(resource.RLIMIT_NOFILE, (lower, before[1]))
    try:
        raise_file_limit()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert hard == before[1]
    assert soft == (65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536))
