"""The user's stream on Redis: durable frames with gapless numbers, live texts, and everything that is published.

Every change is one script, so what a user sees has one order, whoever writes. The scripts say how; here is what for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final, Literal, NamedTuple

import msgspec

from duologue.delivery import scripts
from duologue.delivery.names import EventPosition, UserNames, epochs, names_of, parse_event_id
from duologue.delivery.publication import OF_SOCKET, OTHER, REVOCATION
from duologue.domain.ids import UserKey
from duologue.engines.redis import Argument, Redis, Script
from duologue.protocol.frames import Reset, Snapshot, Typing, encode

Kind = Literal["echo", "response", "failed"]
ResetReason = Literal["retry", "takeover", "regenerate"]

_NOTE_SECONDS: Final = 3600

MAX_PENDING: Final = 300
"""Messages of one user without outcome at most (rule Repeats): what may come again must still be known as a repeat."""


class DurableFrame(NamedTuple):
    """A frame that is to be numbered, kept and published.

    `frame` is its JSON object without `event_id`, with one member at least. `closing` is an outcome's, with which the
    live text of `message_id` ends: the frame that says so, published before it and not kept. Empty for an echo.
    """

    kind: Kind
    message_id: str
    attempt: int
    frame: bytes
    closing: bytes = b""

    @property
    def applied_key(self) -> str:
        """What makes a repeat: an echo is one whatever the attempt, and an attempt has one outcome, of either kind."""
        return f"e:{self.message_id}" if self.kind == "echo" else f"o:{self.message_id}:{self.attempt}"


class Applied(NamedTuple):
    """What became of a durable frame. `position` is None unless it was applied just now."""

    fate: Literal["applied", "repeat", "poisoned"]
    position: EventPosition | None = None


REPEAT: Final = Applied("repeat")
POISONED: Final = Applied("poisoned")


class LiveTextState(NamedTuple):
    """What Redis has of a reply that is being written."""

    attempt: int
    text: str


class AttachReply(msgspec.Struct, frozen=True):
    """What a socket is to send before live frames.

    `position` is before the first of `frames`, which are (event number, frame). With `more`, further frames wait behind
    the last one; without, `lives` are the encoded snapshots of replies being written, and `number` is the cut: later
    publications, and only those, are not contained in this reply.

    `began_ms` is given if it was asked for what is behind the user's cursor and there is none: when this epoch began,
    in milliseconds since the Unix epoch, 0 if that is not known. What the user had before is not in it.
    """

    epoch: str
    number: int
    recovered: bool
    position: EventPosition
    more: bool
    frames: list[tuple[int, bytes]]
    lives: list[bytes]
    began_ms: int = 0

    @property
    def event_id(self) -> str:
        """The `event_id` of `position`, for the `connection` frame."""
        return self.position.event_id

    @property
    def end(self) -> EventPosition:
        """The position behind the last of `frames`."""
        return EventPosition(self.epoch, self.frames[-1][0]) if self.frames else self.position


class RateLimit(NamedTuple):
    """At most `requests` in `window_seconds`, in a burst or spread."""

    requests: int
    window_seconds: int


class Refusal(Enum):
    """What refuses a message."""

    RATE = 1
    """The user's limit in a window."""
    LOAD = 2
    """The system has too much to do to take another one of this user now."""
    PENDING = 3
    """Too many of the user's messages are without outcome."""


class Admission(NamedTuple):
    """Whether a message is known to be a repeat, how long to wait, and what refuses it; None: it is admitted.

    How long to wait is known of the rate only, and None for everything else.
    """

    duplicate: bool
    retry_after_seconds: float | None
    refusal: Refusal | None = None


class CommandNote(msgspec.Struct, frozen=True):
    """What a stop or a regenerate stands for: its message's conversation and, of a regenerate, the attempt that it
    replaces. `acknowledged` tells that the log has it."""

    conversation_id: str
    attempt: int = 0
    acknowledged: bool = False


class CommandAdmission(NamedTuple):
    """What is noted of a command, None if it is new, and how long to wait; None: it is admitted."""

    note: CommandNote | None
    retry_after_seconds: float | None


_command_notes: Final = msgspec.json.Decoder(CommandNote)


class UserStreams:
    """The streams of all users; one per process.

    Every method raises RedisUnavailable (directly, or through the future it returns) when Redis does not answer; what
    was asked may have happened nevertheless. Methods that return a future have sent their call when they return: calls
    take effect in their order. The caller awaits the future.
    """

    scripts: Final = scripts.ALL

    def __init__(self, redis: Redis, *, durable: bool) -> None:
        """Use `redis`, which is to load `scripts`.

        Args:
            redis: the connection.
            durable: it is the Redis of the log, which loses nothing: an epoch then outlives its process.
        """
        self._redis = redis
        self._durable = durable
        self._epochs = epochs()

    @property
    def connected(self) -> bool:
        """Whether calls reach Redis at this moment."""
        return self._redis.connected.is_set()

    @property
    def connections(self) -> int:
        """How often its connection has been made: another number tells that Redis has been away."""
        return self._redis.connections

    # Durable frames

    async def apply(self, user: UserKey, frames: Sequence[DurableFrame]) -> list[Applied]:
        """Apply frames in their order, in one script call: number, keep and publish each that the user has not had.

        Raises:
            RedisCommandError: Redis refuses them for what they are; none is applied.
        """
        arguments: list[Argument] = []
        for frame in frames:
            arguments += (frame.applied_key, frame.message_id, frame.attempt, frame.closing, frame.frame)
        names = names_of(user)
        epoch, *events = await self._run(scripts.APPLY, names, arguments, keys=(names.applied, names.pending))
        name = epoch.decode()
        return [Applied("applied", EventPosition(name, event)) if event else REPEAT for event in events]

    # Live texts

    def open_live(
        self, user: UserKey, message_id: str, conversation_id: str, attempt: int, reason: ResetReason | None
    ) -> asyncio.Future[int]:
        """Begin the live text of an attempt, after its claim; it replaces that of a lower attempt.

        Publishes that the AI is typing and, with a reason, a `reset`. The future's result is 1, or 0 if it is refused:
        that attempt or a later one has ended, or a later one is open.
        """
        frames = [encode(Typing(role="ai", conversation_id=conversation_id, active=True))]
        if reason is not None:
            reset = Reset(message_id=message_id, conversation_id=conversation_id, attempt=attempt, reason=reason)
            frames.insert(0, encode(reset))
        return self._run(scripts.OPEN_LIVE, names_of(user), (message_id, attempt, 0, conversation_id, b"", 0, *frames))

    def append_live(
        self, user: UserKey, message_id: str, attempt: int, from_seq: int, seq: int, text: str, frame: bytes
    ) -> asyncio.Future[int]:
        """Add a piece to a live text and publish its `delta` frame.

        The future's result is 1, or 0 if it is refused: the attempt is not the open one, the text is unknown, ended or
        expired, or `from_seq` does not follow the last `seq`. The worker then reads its claim again.
        """
        return self._run(scripts.APPEND_LIVE, names_of(user), (message_id, attempt, from_seq, seq, text, frame))

    def reopen_live(
        self, user: UserKey, message_id: str, conversation_id: str, attempt: int, seq: int, text: str
    ) -> asyncio.Future[int]:
        """Begin a live text anew with all of it so far, up to and with piece `seq`, and publish that as a `snapshot`.

        The future's result is 1, or 0 if it is refused, as `open_live` is.
        """
        snapshot = encode(
            Snapshot(message_id=message_id, conversation_id=conversation_id, attempt=attempt, seq=seq, content=text)
        )
        return self._run(
            scripts.OPEN_LIVE, names_of(user), (message_id, attempt, seq, conversation_id, text, 1, snapshot)
        )

    async def live_text(self, user: UserKey, message_id: str) -> LiveTextState | None:
        """Return what is written so far of a reply that is being written, None if Redis knows no such text."""
        names = names_of(user)
        state, text = await asyncio.gather(
            self._redis.call("HGET", names.state, f"l:{message_id}"), self._redis.call("GET", names.live(message_id))
        )
        return None if state is None or text is None else LiveTextState(int(state.split(b" ", 1)[0]), text.decode())

    # Publications that are not kept

    def publish(self, user: UserKey, *frames: bytes) -> asyncio.Future[Any]:
        """Publish frames that are not durable (`queued`, `typing`) to all of a user's sockets."""
        return self._run(scripts.PUBLISH, names_of(user), (OTHER, "-", *frames))

    def publish_from(self, user: UserKey, session_id: str, frame: bytes) -> asyncio.Future[Any]:
        """Publish a frame that is not durable to all of a user's sockets but the one that it comes from."""
        return self._run(scripts.PUBLISH, names_of(user), (OF_SOCKET, session_id, frame))

    async def revoke(self, user: UserKey) -> None:
        """Make every server close this user's sockets: their token no longer holds."""
        await self._redis.call("PUBLISH", names_of(user).channel, REVOCATION)

    async def say(self, channel: str, word: str) -> None:
        """Publish a word on a channel that is no user's. Returns when Redis has done so."""
        await self._redis.call("PUBLISH", channel, word)

    # Attaching

    async def attach(self, user: UserKey, last_event_id: str | None) -> AttachReply:
        """Return what a client has missed: behind its last event, or behind the user's cursor if it names none."""
        if last_event_id is None:
            return await self._attach(user, "cursor", EventPosition("", 0))
        return await self._attach(user, "behind", parse_event_id(last_event_id))

    async def attach_behind(self, user: UserKey, position: EventPosition) -> AttachReply:
        """Return what follows a position: the next part of a long replay, or what a socket itself has missed."""
        return await self._attach(user, "behind", position)

    async def _attach(self, user: UserKey, how: str, position: EventPosition) -> AttachReply:
        reply = await self._run(scripts.ATTACH, names_of(user), (how, position.epoch, position.number))
        return _attach_reply(reply)

    async def numbers(self, users: Sequence[UserKey]) -> list[int | None]:
        """Return each user's running number, None where Redis knows none."""
        if not users:
            return []
        calls = [self._redis.call("HGET", names_of(user).state, "number") for user in users]
        replies = await asyncio.gather(*calls)
        return [None if reply is None else int(reply) for reply in replies]

    async def advance_cursor(self, user: UserKey, position: EventPosition) -> bool:
        """Move the cursor to a frame that a device was surely sent; never back. Tells whether it moved."""
        names = names_of(user)
        moved = await self._redis.run(scripts.CURSOR, (names.state,), (self._run_id, position.epoch, position.number))
        return bool(moved)

    # Admission

    async def admit(
        self,
        user: UserKey,
        message_id: str,
        *,
        limit: RateLimit,
        max_pending: int = MAX_PENDING,
        max_by_load: int = MAX_PENDING,
    ) -> Admission:
        """Count a message against its user's limits, as one without outcome too, until `withdraw` or its outcome.

        One known from `note` counts against ten times the rate only, and is a message without outcome already, or was.

        Args:
            user: whose it is.
            message_id: which.
            limit: the user's rate.
            max_pending: how many of the user's messages may be without outcome.
            max_by_load: how many as the system is loaded. With 0 only what is accepted, or about to be, is admitted.
        """
        names = names_of(user)
        keys = (names.note(message_id), names.rate, names.repeat_rate, names.pending)
        arguments = (limit.requests, limit.window_seconds * 1_000_000, message_id, max_pending, max_by_load)
        duplicate, wait_us, refusal = await self._redis.run(scripts.ADMIT, keys, arguments)
        return Admission(bool(duplicate), _seconds(wait_us), Refusal(refusal) if refusal else None)

    def withdraw(self, user: UserKey, message_id: str) -> asyncio.Future[Any]:
        """Count an admitted message no longer as one without outcome: there will be none, or none that is applied."""
        return self._redis.call("ZREM", names_of(user).pending, message_id)

    async def admit_command(
        self, user: UserKey, command: str | None, *, limit: RateLimit, like_message: bool
    ) -> CommandAdmission:
        """Count a stop or a regenerate, and return what is noted of it.

        Args:
            user: whose it is.
            command: what tells a repeat of it; None if nothing does.
            limit: the limit of messages.
            like_message: it counts as one of them, unless it is a repeat; else against ten times the limit.
        """
        names = names_of(user)
        keys = (names.command_note(command or ""), names.rate, names.repeat_rate)
        arguments = (limit.requests, limit.window_seconds * 1_000_000, int(like_message))
        note, wait_us = await self._redis.run(scripts.ADMIT_COMMAND, keys, arguments)
        return CommandAdmission(None if note is None else _command_notes.decode(note), _seconds(wait_us))

    async def reserve_command(self, user: UserKey, command: str, note: CommandNote) -> CommandNote:
        """Note for an hour what a command stands for, unless that is noted already; return what holds."""
        key, value = names_of(user).command_note(command), msgspec.json.encode(note)
        earlier = await self._redis.call("SET", key, value, "NX", "GET", "EX", _NOTE_SECONDS)
        return note if earlier is None else _command_notes.decode(earlier)

    def note_command(self, user: UserKey, command: str, note: CommandNote) -> asyncio.Future[Any]:
        """Note for an hour what a command stands for, whatever was noted before."""
        key, value = names_of(user).command_note(command), msgspec.json.encode(note)
        return self._redis.call("SET", key, value, "EX", _NOTE_SECONDS)

    async def limit_address(self, address: str, limit: RateLimit) -> float | None:
        """Count a token issued to an address; returns the seconds to wait, None if it is admitted."""
        window_us = limit.window_seconds * 1_000_000
        wait_us = await self._redis.run(
            scripts.LIMIT_ADDRESS, (f"rate:address:{address}",), (limit.requests, window_us)
        )
        return _seconds(wait_us)

    def note(self, user: UserKey, message_id: str, conversation_id: str) -> asyncio.Future[Any]:
        """Remember for an hour that the log has a message, and in which conversation."""
        return self._redis.call("SET", names_of(user).note(message_id), conversation_id, "EX", _NOTE_SECONDS)

    async def conversation_of(self, user: UserKey, message_id: str) -> str | None:
        """Return the conversation of a message noted within the last hour."""
        conversation: bytes | None = await self._redis.call("GET", names_of(user).note(message_id))
        return None if conversation is None else conversation.decode()

    async def forget(self, user: UserKey) -> None:
        """Delete everything of a user. Takes a walk over all keys: for the deletion of users only."""
        names = names_of(user)
        await self._redis.call(
            "DEL",
            names.state,
            names.events,
            names.applied,
            names.pending,
            names.rate,
            names.repeat_rate,
        )
        pattern = f"*:{_escaped(names.tag)}*"
        cursor = b"0"
        while True:
            cursor, keys = await self._redis.call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            if keys:
                await self._redis.call("DEL", *keys)
            if cursor == b"0":
                return

    # Calls

    @property
    def _run_id(self) -> str:
        """The process of Redis that will run what is called now: a new connection takes calls once it has read this."""
        return "" if self._durable else self._redis.run_id

    def _run(
        self, script: Script, names: UserNames, arguments: Sequence[Argument], *, keys: Sequence[Argument] = ()
    ) -> asyncio.Future[Any]:
        """Run a script that begins with `state.lua`."""
        head = (self._run_id, next(self._epochs), names.tag, names.channel)
        return self._redis.run(script, (names.state, names.events, *keys), (*head, *arguments))


def _attach_reply(reply: Sequence[Any]) -> AttachReply:
    epoch, number, recovered, behind, more, frames, lives, began = reply
    name = epoch.decode()
    return AttachReply(
        epoch=name,
        number=int(number),
        recovered=bool(recovered),
        position=EventPosition(name, behind),
        more=bool(more),
        frames=list(zip(frames[::2], frames[1::2], strict=True)),
        lives=[_snapshot(*live) for live in zip(lives[::3], lives[1::3], lives[2::3], strict=True)],
        began_ms=began,
    )


def _snapshot(message: bytes, state: bytes, text: bytes) -> bytes:
    attempt, seq, _, conversation = state.decode().split(" ", 3)
    return encode(
        Snapshot(
            message_id=message.decode(),
            conversation_id=conversation,
            attempt=int(attempt),
            seq=int(seq),
            content=text.decode(),
        )
    )


def _seconds(wait_us: int) -> float | None:
    return wait_us / 1_000_000 if wait_us else None


def _escaped(text: str) -> str:
    return "".join(f"\\{character}" if character in "*?[]^\\" else character for character in text)
