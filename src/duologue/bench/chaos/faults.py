"""How each fault of a plan is done."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Final

from duologue.bench.chaos.clients import Doing
from duologue.bench.chaos.model import Behaviour
from duologue.bench.chaos.plan import Step
from duologue.bench.chaos.subject import Part, Subject
from duologue.bench.chaos.tools import Tool

_MODEL_FAULTS: Final = frozenset(["slow", "cut", "429", "500", "silence"])
_SHARE: Final = 0.6
_SHARES: Final = {"slow": 1.0}
"""With which share of the requests something goes wrong; of those that fail some do not, so that replies go on."""

_CLIENT_FAULTS: Final = frozenset(["vanish", "slow_reader", "resend"])


class _ModelPart:
    """The scripted model."""

    def __init__(self, tool: Tool) -> None:
        self._tool = tool

    async def kill(self) -> None:
        await self._tool.kill()

    async def stop(self) -> None:
        await self._tool.aclose()

    async def start(self) -> None:
        await self._tool.start()

    async def pause(self) -> None:
        self._tool.signal(signal.SIGSTOP)

    async def resume(self) -> None:
        self._tool.signal(signal.SIGCONT)


class Faults:
    """Does the steps of a plan to a system, its model and its clients."""

    def __init__(self, subject: Subject, model: Tool, clients: Tool) -> None:
        self._subject = subject
        self._model = model
        self._clients = clients
        self._to_parts: dict[str, Callable[[Part, float], Awaitable[int | None]]] = {
            "kill": _kill,
            "term": _stop,
            "restart": _stop,
            "pause": _pause,
        }

    async def make(self, step: Step) -> int | None:
        """Make a fault and end it; what was hurt is ready again then.

        Returns:
            The exit code of a process that was asked to end.

        Raises:
            StartRefused: it does not come back.
        """
        if step.fault in _MODEL_FAULTS:
            share = _SHARES.get(step.fault, _SHARE)
            await self._model.post("/behave", Behaviour(step.fault, step.seconds, share), dict)  # type: ignore[arg-type]
            await asyncio.sleep(step.seconds)
            return None
        if step.fault in _CLIENT_FAULTS:
            await self._clients.post("/do", Doing(step.fault, step.seconds), dict)  # type: ignore[arg-type]
            await asyncio.sleep(step.seconds)
            return None
        if step.fault == "flush":
            await self._subject.flush()
            return None
        part = _ModelPart(self._model) if step.target == "model" else self._subject.part(step.target)
        return await self._to_parts[step.fault](part, step.seconds)

    async def restore(self) -> None:
        """Let all run again. Raises StartRefused."""
        self._model.signal(signal.SIGCONT)
        if not self._model.running:
            await self._model.start()
        await self._subject.restore()


async def _kill(part: Part, seconds: float) -> None:
    await part.kill()
    await asyncio.sleep(seconds)
    await part.start()


async def _stop(part: Part, seconds: float) -> int | None:
    code = await part.stop()
    await asyncio.sleep(seconds)
    await part.start()
    return code


async def _pause(part: Part, seconds: float) -> None:
    await part.pause()
    try:
        await asyncio.sleep(seconds)
    finally:
        await part.resume()
