"""One user with one or more devices: sends messages, and brings together what the devices see of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from duologue.bench.load.device import Device
from duologue.bench.load.frames import encode
from duologue.bench.load.recorder import Recorder


@dataclass(slots=True)
class Exchange:
    """A message and what has come of it. Times are of `time.perf_counter`, 0 as long as it has not happened.

    `began` is when the message was due, or left if that was a moment earlier; 0 for one that devices have seen pieces
    of before they could know which message that is.
    """

    began: float = 0.0
    client_id: str = ""
    frame: bytes = b""
    device: Device | None = None
    acked: bool = False
    first: float = 0.0
    answered: float = 0.0
    outcomes: int = 0
    digest: int | None = None


@dataclass(slots=True)
class Talk:
    """In which conversation a user is, for how many more messages, and which comes next. Empty: the user's default."""

    conversation_id: str = ""
    left: int = 0
    following: str = ""


@dataclass(slots=True)
class Tally:
    """How many messages of a crowd have neither an outcome on every device nor a refusal."""

    open: int = 0


class LoadUser:
    """A user of the load.

    Args:
        user_id: the name; its messages' ids begin with it.
        devices: how many.
        address: gives the socket's address with a token.
        on_lost: is told of a device that has lost its socket without having been asked to.
        tally: of all users together.
        recorder: of the phase; replaced for the next.
    """

    def __init__(
        self,
        user_id: str,
        devices: int,
        address: Callable[[str], str],
        on_lost: Callable[[Device], None],
        tally: Tally,
        recorder: Recorder,
    ) -> None:
        self.user_id = user_id
        self.recorder = recorder
        self.devices = [Device(self, lambda: address(user_id), on_lost) for _ in range(devices)]
        self.talk = Talk()
        self._tally = tally
        self._by_client_id: dict[str, Exchange] = {}
        self._by_message_id: dict[str, Exchange] = {}
        self._sequence = 0

    @property
    def waiting(self) -> Mapping[str, Exchange]:
        """Messages that have neither an outcome on every device nor a refusal, by the client's own id."""
        return self._by_client_id

    def send(self, content: str, due: float) -> None:
        """Send one message, from its next device."""
        now = time.perf_counter()
        self._sequence += 1
        client_id = f"{self.user_id}-{self._sequence}"
        message = {"type": "message", "id": client_id, "content": content}
        if self.talk.conversation_id:
            message["conversation_id"] = self.talk.conversation_id
        device = self.devices[self._sequence % len(self.devices)]
        frame = encode(message)
        exchange = Exchange(began=min(due, now), client_id=client_id, frame=frame, device=device)
        self._by_client_id[client_id] = exchange
        self._tally.open += 1
        self.recorder.note_sent(now - due)
        device.send(frame)

    async def come_back(self, device: Device) -> None:
        """Connect a device again, and send from it what it does not know to be accepted. Raises as `Device.connect`."""
        await device.connect()
        self.recorder.reconnects += 1
        for exchange in self._by_client_id.values():
            if exchange.device is device and not exchange.acked:
                self.recorder.resent += 1
                device.send(exchange.frame)

    def forget(self) -> None:
        """Drop what is open: it is given up."""
        self._tally.open -= len(self._by_client_id)
        self._by_client_id.clear()
        self._by_message_id.clear()
        for device in self.devices:
            device.forget()

    # What the devices see

    def acknowledged(self, client_id: str, message_id: str, now: float) -> None:
        """See `Owner`."""
        exchange = self._by_client_id.get(client_id)
        if exchange is not None and not exchange.acked:
            exchange.acked = True
            self.recorder.note_ack(now - exchange.began)
            self._bind(exchange, message_id)

    def named(self, client_id: str, message_id: str) -> None:
        """See `Owner`."""
        exchange = self._by_client_id.get(client_id)
        if exchange is not None:
            self._bind(exchange, message_id)

    def began(self, message_id: str, now: float) -> None:
        """See `Owner`."""
        exchange = self._of(message_id)
        if not exchange.first:
            exchange.first = now
            if exchange.began:
                self.recorder.note_first_token(now - exchange.began)

    def ended(self, message_id: str, now: float, content: str | None, code: str | None) -> None:
        """See `Owner`."""
        exchange = self._of(message_id)
        digest = hash(content)
        exchange.outcomes += 1
        if exchange.outcomes == 1:
            exchange.answered, exchange.digest = now, digest
            if content is None:
                self.recorder.breach("failed replies", f"{message_id}: {code}")
            if exchange.began:
                self.recorder.note_answer(now - exchange.began)
        elif digest != exchange.digest:
            self.recorder.breach("replies that differ between devices", message_id)
        self._close_if_done(exchange, message_id)

    def refused(self, client_id: str, code: str, now: float) -> None:
        """See `Owner`."""
        del code  # counted by the device
        exchange = self._by_client_id.pop(client_id, None)
        if exchange is not None:
            self._tally.open -= 1
            self.recorder.note_refusal(now - exchange.began)

    def _of(self, message_id: str) -> Exchange:
        exchange = self._by_message_id.get(message_id)
        if exchange is None:
            exchange = self._by_message_id[message_id] = Exchange()
        return exchange

    def _bind(self, exchange: Exchange, message_id: str) -> None:
        known = self._by_message_id.get(message_id)
        if known is not exchange:
            self._by_message_id[message_id] = exchange
            if known is not None:
                self._take_over(exchange, known)
        self._close_if_done(exchange, message_id)

    def _take_over(self, exchange: Exchange, early: Exchange) -> None:
        """Count what devices have seen before they knew which message it was about."""
        exchange.first, exchange.answered = early.first, early.answered
        exchange.outcomes, exchange.digest = early.outcomes, early.digest
        if exchange.first:
            self.recorder.note_first_token(exchange.first - exchange.began)
        if exchange.answered:
            self.recorder.note_answer(exchange.answered - exchange.began)

    def _close_if_done(self, exchange: Exchange, message_id: str) -> None:
        if exchange.acked and exchange.outcomes >= len(self.devices):
            self._by_message_id.pop(message_id, None)
            if self._by_client_id.pop(exchange.client_id, None) is not None:
                self._tally.open -= 1
