"""Replaying dead letters: the failed reply is asked for again, or the record's bytes go back onto their topic."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import structlog

from duologue.domain.clock import Clock
from duologue.domain.errors import LogUnavailable, Permanent, Rejected, Retryable
from duologue.domain.records import CORRELATION_HEADER, INCOMING_TOPIC, RESPONSES_TOPIC, RegenerateRequested, encode
from duologue.log.port import LogProducer
from duologue.observability.metrics import DEAD_LETTERS_HANDLED
from duologue.store.database import Database
from duologue.store.dead_letters import (
    BegunReplay,
    DeadLetterRow,
    DeadLetterSummary,
    begin_replay,
    drop_dead_letter,
    end_replay,
    is_failed_reply,
    undo_replay,
)

_log = structlog.get_logger(__name__)

_TOPICS: Final = frozenset({INCOMING_TOPIC, RESPONSES_TOPIC})


class _Append(NamedTuple):
    """What a replay puts on the log."""

    topic: str
    key: str
    value: bytes
    headers: Mapping[str, str]


class Replays:
    """Replays and drops dead letters, for operators."""

    def __init__(self, database: Database, producer: LogProducer, clock: Clock) -> None:
        self._database = database
        self._producer = producer
        self._clock = clock

    async def replay(self, letter_id: str, *, by: str, correlation_id: str) -> DeadLetterSummary:
        """Replay a letter and return it as it stands then.

        Whatever is appended changes nothing when it comes twice: a request to answer again names the attempt that it
        replaces, a message its id, an outcome its attempt. So a replay whose end could not be noted may be repeated.

        Args:
            letter_id: which one; `by` is the operator's name.
            correlation_id: finds what comes of it in the logs.

        Raises:
            Rejected: see `begin_replay`; `dead_letter_refused`: the log does not take the record.
            Retryable: the store or the log cannot be reached; asking again is safe.
        """
        begun = await self._database.write(begin_replay, letter_id, by, self._clock())
        letter = begun.letter
        await self._append(begun, correlation_id)
        done = await self._database.write(end_replay, letter_id)
        DEAD_LETTERS_HANDLED.labels(letter.topic, "replay").inc()
        _log.info("dead_letter_replayed", letter_id=letter_id, by=by, correlation_id=correlation_id)
        return done

    async def drop(self, letter_id: str, *, by: str) -> DeadLetterSummary:
        """Drop a letter and return it as it stands then.

        Raises:
            Rejected: see `drop_dead_letter`.
            Retryable: the store cannot be reached.
        """
        dropped = await self._database.write(drop_dead_letter, letter_id, by, self._clock())
        DEAD_LETTERS_HANDLED.labels(dropped.topic, "drop").inc()
        _log.info("dead_letter_dropped", letter_id=letter_id, by=by)
        return dropped

    async def _append(self, begun: BegunReplay, correlation_id: str) -> None:
        try:
            await self._producer.append(*self._append_of(begun.letter, correlation_id))
        except LogUnavailable:
            await self._undo(begun)
            raise
        except Permanent as error:
            await self._undo(begun)
            raise Rejected("dead_letter_refused", f"The log does not take the record: {error}") from error

    async def _undo(self, begun: BegunReplay) -> None:
        with suppress(Retryable):  # then it can be replayed again when its time is over
            await self._database.write(undo_replay, begun)

    def _append_of(self, letter: DeadLetterRow, correlation_id: str) -> _Append:
        if is_failed_reply(letter):
            request = _request_again(letter, self._clock(), correlation_id)
            return _Append(
                INCOMING_TOPIC, request.conversation_id, encode(request), {CORRELATION_HEADER: correlation_id}
            )
        if letter.topic not in _TOPICS:
            raise Permanent(f"{letter.topic} is no topic of this program's")
        return _Append(letter.topic, letter.key, letter.value, letter.headers)


def _request_again(letter: DeadLetterRow, now: int, correlation_id: str) -> RegenerateRequested:
    ids = (letter.tenant, letter.user_id, letter.uid, letter.message_id, letter.conversation_id, letter.attempt)
    match ids:
        case (str(tenant), str(user_id), str(uid), str(message_id), str(conversation_id), int(attempt)):
            return RegenerateRequested(
                tenant=tenant,
                user_id=user_id,
                uid=uid,
                message_id=message_id,
                conversation_id=conversation_id,
                attempt=attempt,
                requested_at=now,
                correlation_id=correlation_id,
                operator=True,
            )
        case _:
            raise Permanent("the letter does not tell which message has failed")
