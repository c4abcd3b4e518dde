"""Whether a message is let in: the user's limits, and the load of whoever is to answer it.

The load is what ai-consumers say of themselves once a second, read in the background; a message's way only compares
numbers. What was put on the log since is added to it, so that a crowd between two figures is seen, and so that the edge
still knows when to stop if there are no figures any more.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import structlog

from duologue.delivery.load import LoadBoard, LoadReport, Standing, keep_current
from duologue.delivery.stream import RateLimit, Refusal, UserStreams
from duologue.domain.errors import DuologueError, Rejected
from duologue.domain.ids import UserKey
from duologue.protocol.codes import ErrorCode
from duologue.websocket_server.admission import rate_limited

_log = structlog.get_logger(__name__)

FIRST_REPLIES_PER_SECOND: Final = 10.0
"""What is believed of consumers of which nothing was heard yet."""
RELIEF: Final = 0.75
"""The share of the limit at which messages are taken again: at the limit itself it would turn with every figure."""
PENDING_RETRY_SECONDS: Final = 5.0
"""What a user with too many messages without outcome is told to wait."""
LEAST_RETRY_SECONDS: Final = 1.0
UNLIMITED: Final = 1_000_000


class Allowance(NamedTuple):
    """How many messages of a user may be without outcome for another one to be taken, and else when to try again."""

    messages: int
    retry_after_seconds: float


class _Known:
    """What is known of one consumer: its last figures, and what went to it from here since."""

    __slots__ = ("appended", "refusing", "report", "written_at")

    def __init__(self, report: LoadReport, written_at: int, *, refusing: bool = False) -> None:
        self.report = report
        self.written_at = written_at
        self.refusing = refusing
        self.appended = 0

    @property
    def appended_seconds(self) -> float:
        """What it takes to answer what went there since."""
        return self.appended / max(self.report.replies_per_second, 0.001)


_UNHEARD: Final = LoadReport(
    consumer="",
    partitions=(),
    waiting=0,
    unread=0,
    slots=0,
    running=0,
    wait_seconds=0.0,
    backlog_seconds=0.0,
    replies_per_second=FIRST_REPLIES_PER_SECOND,
)


class LoadGate:
    """Knows how long messages would wait for their replies' begin, and when that is too long.

    A conversation's messages go to the consumer that has its partition, so only who sends to a consumer in need is
    refused. Users take turns there: each turn takes what a newcomer waits, so that who has many messages waiting is
    refused before who has few.
    """

    def __init__(
        self,
        board: LoadBoard,
        *,
        limit_seconds: float,
        partition_of: Callable[[str], int],
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Read `board`.

        Args:
            board: the figures.
            limit_seconds: expected wait beyond which nothing is taken.
            partition_of: the partition of `incoming_messages` that a conversation's records go to.
            draw: a random number from 0 to 1.
        """
        self._board = board
        self._limit = limit_seconds
        self._partition_of = partition_of
        self._draw = draw
        self._unheard = _Known(_UNHEARD, 0)
        self._by_partition: dict[int, _Known] = {}

    async def run(self) -> None:
        """Read the figures once a second, until cancelled."""
        await keep_current(self._read, failed="load_not_read")

    async def _read(self) -> None:
        self.learn(await self._board.read())

    def learn(self, standings: Sequence[Standing]) -> None:
        """Take in figures, the oldest first. Of a partition that none of them has, what was known stands."""
        before = {known.report.consumer: known for known in self._by_partition.values()}
        for report, written_at in standings:
            known = before.get(report.consumer)
            if known is None or known.written_at != written_at:
                known = _Known(report, written_at, refusing=known is not None and known.refusing)
            for partition in report.partitions:
                self._by_partition[partition] = known

    def allowance(self, conversation_id: str) -> Allowance:
        """Return what a user may have waiting before another message of a conversation is taken.

        The time to try again is spread, or all would come back at once.
        """
        known = self._known(conversation_id)
        turn = known.report.wait_seconds + known.appended_seconds
        backlog = known.report.backlog_seconds + known.appended_seconds
        known.refusing = turn > self._limit * (RELIEF if known.refusing else 1)
        if known.refusing:
            return Allowance(0, self._spread(turn - self._limit * RELIEF))
        if backlog <= self._limit or not turn:
            return Allowance(UNLIMITED, 0.0)
        return Allowance(int(self._limit / turn), self._spread(turn))

    def take(self, conversation_id: str) -> None:
        """Let a request for another answer in: nothing else of its conversation waits.

        Raises:
            Rejected: `overloaded`.
        """
        allowance = self.allowance(conversation_id)
        if not allowance.messages:
            raise overloaded(allowance)
        self.appended(conversation_id)

    def _spread(self, seconds: float) -> float:
        return round(min(max(LEAST_RETRY_SECONDS, seconds), self._limit) * (1 + self._draw() / 2), 1)

    def appended(self, conversation_id: str) -> None:
        """A message goes on the log."""
        self._known(conversation_id).appended += 1

    def _known(self, conversation_id: str) -> _Known:
        return self._by_partition.get(self._partition_of(conversation_id), self._unheard)


class Admittance:
    """Lets messages in or says why not."""

    def __init__(self, streams: UserStreams, gate: LoadGate, *, limit: RateLimit, max_pending: int) -> None:
        """Count in `streams`.

        Args:
            streams: where users' messages are counted.
            gate: knows the load.
            limit: messages of one user in a window.
            max_pending: messages of one user without outcome.
        """
        self._streams = streams
        self._gate = gate
        self._limit = limit
        self._max_pending = max_pending

    async def admit(self, user: UserKey, message_id: str, conversation_id: str) -> bool:
        """Count a message; what is refused counts nowhere.

        Returns:
            Whether the log is known to have it already. Load never refuses that.

        Raises:
            Rejected: `rate_limited` or `overloaded`.
            RedisUnavailable: nobody can tell now.
        """
        allowance = self._gate.allowance(conversation_id)
        duplicate, rate_seconds, refusal = await self._streams.admit(
            user, message_id, limit=self._limit, max_pending=self._max_pending, max_by_load=allowance.messages
        )
        match refusal:
            case Refusal.RATE:
                rate_limited(self._limit, rate_seconds or 0.0)
            case Refusal.LOAD:
                raise overloaded(allowance)
            case Refusal.PENDING:
                raise self._too_many(max(allowance.retry_after_seconds, PENDING_RETRY_SECONDS))
        if not duplicate:
            self._gate.appended(conversation_id)
        return duplicate

    async def withdraw(self, user: UserKey, message_id: str) -> None:
        """The log has not taken an admitted message. If it has after all, it is answered and nothing else changes."""
        try:
            await self._streams.withdraw(user, message_id)
        except DuologueError as error:  # it is forgotten by its age
            _log.debug("withdrawal_lost", message_id=message_id, error=str(error))

    def _too_many(self, seconds: float) -> Rejected:
        return Rejected(
            ErrorCode.OVERLOADED,
            f"{self._max_pending} of your messages wait for an answer",
            retry_after_seconds=seconds,
        )


def overloaded(allowance: Allowance) -> Rejected:
    """Return what a client is told whose message would wait too long."""
    return Rejected(
        ErrorCode.OVERLOADED,
        "too many messages wait for an answer",
        retry_after_seconds=allowance.retry_after_seconds,
    )
