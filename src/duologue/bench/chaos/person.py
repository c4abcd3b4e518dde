"""One user of the crowd: several devices and conversations, and what is still owed to them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import aiohttp

from duologue.bench.chaos.device import Device
from duologue.bench.chaos.history import ENDED, DeviceName, Frame, Row
from duologue.bench.chaos.story import question
from duologue.client.http_api import HttpApi, RequestRefused
from duologue.client.tokens import GuestTokens, ServerUnreachable, TokenRefused

_MOST_OWED: Final = 20
_STOP_SHARE: Final = 0.04
_STOP_AT_ONCE_SHARE: Final = 0.03
"""Of messages that are stopped as soon as they are acknowledged: many of them wait still."""
_TWICE_SHARE: Final = 0.25
"""Of stops and regenerations that two devices ask for at the same time."""
_REGENERATE_SHARE: Final = 0.08
_HISTORY_RETRY_SECONDS: Final = 1.0


class _Said:
    """A message: the highest attempt whose outcome was told, and the one above which an outcome is owed."""

    __slots__ = ("attempt", "owed_above")

    def __init__(self) -> None:
        self.attempt = 0
        self.owed_above = 0

    @property
    def is_owed(self) -> bool:
        """Whether an outcome is still to come: of the message, or of a regeneration."""
        return self.attempt <= self.owed_above


class Person:
    """A user. The number decides who it is: every fourth has a single device that keeps no position.

    Args:
        number: which one.
        prefix: what names begin with; markers too, so it is unique to the run.
        http, url, ws_url: where the server is.
        folder: for the devices' files.
        seed: of the run.
    """

    def __init__(
        self, number: int, prefix: str, http: aiohttp.ClientSession, url: str, ws_url: str, folder: Path, seed: int
    ) -> None:
        self.user_id = f"{prefix}-{number}"
        self._chance = random.Random(f"person {seed} {number}")  # noqa: S311  # behaviour, no secrets
        self._tokens = GuestTokens(http, url, self.user_id)
        self._history = HttpApi(http, url, self)
        self._token_lock = asyncio.Lock()
        self.accepted = 0
        self.answered = 0
        self._said: dict[str, _Said] = {}
        self._unheard: set[str] = set()
        self._owed: dict[str, float] = {}
        self._by_message: dict[str, str] = {}
        self._last_in: dict[str, str] = {}
        self._regenerations: dict[str, tuple[str, int]] = {}
        self._stops: set[str] = set()
        self._cursors: dict[str, str | None] = {}
        self._reading: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.devices = [
            Device(name, self, ws_url, conversation, folder, random.Random(f"{seed} {name.name}"))  # noqa: S311
            for name, conversation in _devices(self.user_id, alone=number % 4 == 3)
        ]
        for device in self.devices:
            if device.name.keeps_position:
                device.on_lost_position = self._want_history

    # What its devices ask for

    async def token(self, *, renew: bool = False) -> str:
        """Return the user's token: one for all devices, as the name can be taken once."""
        async with self._token_lock:
            try:
                return await self._tokens.token(renew=renew)
            except TokenRefused as error:
                # The answer with the token was lost and the name is taken: nobody can ever be this guest again.
                raise ServerUnreachable(f"{self.user_id} has no token: {error}") from error

    def told(self, device: Device, frame: Frame) -> None:
        """Follow what is owed, and now and then stop or regenerate."""
        if frame.type in ("ack", "echo", "error") and frame.id is not None:
            self._on_answer(frame)
        if frame.message_id is None:
            return
        if frame.type == "delta" and frame.seq == 1 and device is self.devices[0]:
            self._maybe_stop(frame.message_id, frame.conversation_id, _STOP_SHARE)
        elif frame.type == "ack":
            self._maybe_stop(frame.message_id, frame.conversation_id, _STOP_AT_ONCE_SHARE)
        elif frame.type in ("response", "error") and frame.attempt is not None:
            self._on_outcome(frame.message_id, frame.attempt)
            if frame.type == "response" and device is self.devices[0]:
                self._maybe_regenerate(frame.message_id, frame.attempt, frame.conversation_id or "")

    def _on_answer(self, frame: Frame) -> None:
        key = frame.id or ""
        if frame.type == "error":
            if not frame.temporary:
                self._unheard.discard(key)
                self._regenerations.pop(key, None)
        elif key in self._said and frame.message_id is not None:
            self._on_accepted(key, frame.message_id, frame.conversation_id or "")
        elif key in self._regenerations:
            said_key, attempt = self._regenerations.pop(key)
            said = self._said[said_key]
            said.owed_above = max(said.owed_above, attempt)
            if said.is_owed:
                self._owed[said_key] = time.time()

    def _on_accepted(self, key: str, message_id: str, conversation_id: str) -> None:
        if message_id in self._by_message:
            return
        self._by_message[message_id] = key
        self._last_in[conversation_id] = key
        self._unheard.discard(key)
        self.accepted += 1
        if self._said[key].is_owed:
            self._owed[key] = time.time()

    def _on_outcome(self, message_id: str, attempt: int) -> None:
        key = self._by_message.get(message_id)
        if key is None:
            return
        said = self._said[key]
        self.answered += not said.attempt
        said.attempt = max(said.attempt, attempt)
        if not said.is_owed:
            self._owed.pop(key, None)

    # What is owed

    @property
    def ready(self) -> bool:
        """Whether all its devices are attached."""
        return all(device.attached for device in self.devices)

    @property
    def oldest_owed(self) -> float | None:
        """Since when the outcome that is owed longest is owed."""
        return min(self._owed.values(), default=None)

    def waits_for(self) -> list[str]:
        """Return, in words, what this user still waits for."""
        waits = [f"{key}: no outcome" for key in self._owed]
        waits += [f"{key}: not acknowledged" for key in self._unheard]
        for device in self.devices:
            waits += [f"{device.name.name}: not connected"] if not device.attached else []
            waits += [f"{device.name.name}: {device.unanswered} frames not answered"] if device.unanswered else []
            if device.name.name in self._reading:
                waits.append(f"{device.name.name}: reads the history")
            elif device.name.keeps_position:
                unseen = self._by_message.keys() - device.seen
                waits += [f"{device.name.name}: {message_id} not seen" for message_id in unseen]
        return waits

    # What it does

    def say(self) -> None:
        """Send the next message, unless too many wait already."""
        if len(self._owed) + len(self._unheard) >= _MOST_OWED:
            return
        device = self._chance.choice(self.devices)
        key = f"{self.user_id}.{len(self._said)}"
        frame: dict[str, Any] = {"type": "message", "id": key, "content": question(key)}
        conversation = self._chance.choice(self.devices).conversation_id
        if self._chance.random() < 0.3 and conversation not in (None, "new"):
            frame["conversation_id"] = conversation
        self._said[key] = _Said()
        self._unheard.add(key)
        device.send(frame)

    def _maybe_stop(self, message_id: str, conversation_id: str | None, share: float) -> None:
        """Stop a reply now and then. The frame names the conversation, as a client can.

        A server that has lost its notes with Redis would not find a message that is on the log and not stored yet.
        """
        key = self._by_message.get(message_id)
        if key is None or message_id in self._stops or self._chance.random() >= share:
            return
        devices = self._those_that_ask("stop")
        if devices:
            self._stops.add(message_id)
        for number, device in enumerate(devices):
            device.send(
                {
                    "type": "stop",
                    "id": f"stop.{key}.{number}",
                    "message_id": message_id,
                    "conversation_id": conversation_id,
                }
            )

    def _maybe_regenerate(self, message_id: str, attempt: int, conversation_id: str) -> None:
        key = self._by_message.get(message_id)
        if key is None or self._last_in.get(conversation_id) != key or self._chance.random() >= _REGENERATE_SHARE:
            return
        for number, device in enumerate(self._those_that_ask("regenerate")):
            frame_id = f"again.{key}.{attempt}.{number}"
            if frame_id not in self._regenerations:
                self._regenerations[frame_id] = (key, attempt)
                device.send({"type": "regenerate", "id": frame_id, "message_id": message_id, "attempt": attempt})

    def _those_that_ask(self, feature: str) -> list[Device]:
        """Return the device that asks for something, now and then another that asks for the same at the same time."""
        able = [device for device in self.devices if feature in device.features]
        wanted = 2 if self._chance.random() < _TWICE_SHARE else 1
        return self._chance.sample(able, min(wanted, len(able)))

    # The history

    def _want_history(self, device: Device) -> None:
        self._spawn(self._read_history(device))

    async def _read_history(self, device: Device) -> None:
        """Read what is new for a device that could not be told all, however long that takes."""
        if device.name.name in self._reading:
            return
        self._reading.add(device.name.name)
        while True:
            try:
                rows, cursor = await self._history.changes(self._cursors.get(device.name.name))
            except (ServerUnreachable, RequestRefused):
                await asyncio.sleep(_HISTORY_RETRY_SECONDS)
                continue
            break
        self._cursors[device.name.name] = cursor
        self._reading.discard(device.name.name)
        replies = [row for row in rows if row.get("reply_to")]
        device.read([Row(message_id=row["reply_to"], attempt=row["attempt"], state=row["state"]) for row in replies])
        for row in replies:
            if row["state"] in ENDED:
                self._on_outcome(row["reply_to"], row["attempt"])

    async def begin_history(self) -> None:
        """Remember where the history stands, for each device, before anything is said."""
        _, cursor = await self._history.changes(None)
        for device in self.devices:
            self._cursors[device.name.name] = cursor

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """End what still reads."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _devices(user_id: str, *, alone: bool) -> list[tuple[DeviceName, str | None]]:
    """Return names of devices and what they connect with."""
    if alone:
        return [(DeviceName(name=f"{user_id}.only", user_id=user_id, keeps_position=False, alone=True), None)]
    return [
        (DeviceName(name=f"{user_id}.keeper", user_id=user_id, keeps_position=True), None),
        (DeviceName(name=f"{user_id}.second", user_id=user_id, keeps_position=True), "new"),
        (DeviceName(name=f"{user_id}.simple", user_id=user_id, keeps_position=False), None),
    ]
