"""A system that tests share: starting every process takes seconds, and what a test ended is soon started again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Generic, TypeVar

from duologue.bench.system import System
from duologue.domain.errors import StartRefused

_Kind = TypeVar("_Kind", bound=System)

Settings = Mapping[str, str]


class Standing(Generic[_Kind]):
    """One system at a time. A test that wants other settings than the one before gets a new one.

    Users, conversations and topics stay from test to test: each takes users of its own.

    Args:
        begin: starts a system with given settings.
    """

    def __init__(self, begin: Callable[[Settings], AbstractAsyncContextManager[_Kind]]) -> None:
        self._begin = begin
        self._running = AsyncExitStack()
        self._settings: Settings = {}
        self._system: _Kind | None = None

    async def with_settings(self, settings: Settings) -> _Kind:
        """Return the system with these settings, all of it ready."""
        if self._system is not None and self._settings == settings:
            try:
                await self._system.start()  # what the test before has ended
            except StartRefused:
                pass  # what that test has found is told there; this one begins anew
            else:
                return self._system
        await self.end()
        self._system = await self._running.enter_async_context(self._begin(settings))
        self._settings = settings
        return self._system

    async def end(self) -> None:
        """End what runs; the next test gets a new one."""
        self._system = None
        await self._running.aclose()
