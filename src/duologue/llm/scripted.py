"""A model that plays scripts: for tests, and for trying things without a model. It records what it was asked."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeAlias

from duologue.domain.records import Usage
from duologue.llm.port import (
    Chunk,
    Finished,
    LanguageModel,
    ModelEvent,
    ModelRefused,
    ModelRequest,
    ModelTemporaryError,
)


@dataclass(slots=True)
class Pause:
    """The script waits here until `open` is called; `reached` is set when it arrives."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    _opened: asyncio.Event = field(default_factory=asyncio.Event)

    def open(self) -> None:
        self._opened.set()

    async def wait(self) -> None:
        self.reached.set()
        await self._opened.wait()


Step: TypeAlias = str | Pause | Finished | ModelTemporaryError | ModelRefused
"""A text is yielded, an error is raised, `Finished` ends the answer (its absence at the end means `stop`)."""

Script: TypeAlias = Sequence[Step]
Chooser: TypeAlias = Callable[[ModelRequest], Script | None]


def echo(request: ModelRequest) -> Script:
    """Answer "You said: …" with what the user said last, word by word."""
    said = next((message.content for message in reversed(request.messages) if message.role == "user"), "")
    return re.findall(r"\S+\s*", f"You said: {said}")


class ScriptedModel(LanguageModel):
    """Plays the scripts in their order, one a call; then what `choose` returns for a request; then an echo.

    Attributes:
        prompts: every request, in order.
        running: answers under way.
        abandoned: answers closed by their reader before their end.
        failure: what `check` raises, None while the model is well.
    """

    def __init__(
        self, scripts: Iterable[Script] = (), *, choose: Chooser | None = None, name: str = "scripted"
    ) -> None:
        self._scripts = deque(scripts)
        self._choose = choose
        self._name = name
        self.prompts: list[ModelRequest] = []
        self.running = 0
        self.abandoned = 0
        self.failure: ModelTemporaryError | ModelRefused | None = None
        self._changed = asyncio.Condition()

    @property
    def name(self) -> str:
        return self._name

    @property
    def provider(self) -> str:
        return self._name

    def play(self, *script: Step) -> None:
        """Add a script for a later call."""
        self._scripts.append(script)

    async def asked(self, times: int) -> None:
        """Return once the model has been asked that often in all."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.prompts) >= times)

    async def check(self) -> None:
        """Raise `failure` if there is one."""
        if self.failure is not None:
            raise self.failure

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Play one script: see `LanguageModel.stream`."""
        script = self._next_script(request)
        async with self._changed:
            self.prompts.append(request)
            self._changed.notify_all()
        self.running += 1
        ended = False
        try:
            async with aclosing(self._events(script)) as events:
                async for event in events:
                    ended = isinstance(event, Finished)
                    yield event
        except (ModelTemporaryError, ModelRefused):
            ended = True
            raise
        finally:
            self.running -= 1
            self.abandoned += not ended

    def _next_script(self, request: ModelRequest) -> Script:
        if self._scripts:
            return self._scripts.popleft()
        chosen = self._choose(request) if self._choose is not None else None
        return echo(request) if chosen is None else chosen

    async def _events(self, script: Script) -> AsyncGenerator[ModelEvent, None]:
        pieces = 0
        for step in script:
            if isinstance(step, Pause):
                await step.wait()
            elif isinstance(step, str):
                pieces += 1
                yield Chunk(step)
            elif isinstance(step, Finished):
                yield step
                return
            else:
                raise step
            await asyncio.sleep(0)  # as from a network: others run between two pieces
        yield Finished("stop", self._name, Usage(1, pieces, pieces + 1))
