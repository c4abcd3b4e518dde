"""One request for an answer on its way through the ai-consumer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping

from duologue.ai_consumer.reply import Reply
from duologue.delivery.stream import Applied
from duologue.domain.ids import UserKey
from duologue.domain.records import CORRELATION_HEADER, TRACE_HEADER, MessageSubmitted, RegenerateRequested
from duologue.log.committer import Delivery
from duologue.log.port import Partition
from duologue.store.messages import Incoming, StoredRequest


class Request:
    """A request, from its record to its end. `stored` and `echo` follow once the store has it.

    `replaces` is the attempt of the answer that another one is asked for, 0 for a message's first. `stopping` tells
    that it is to end with what is written. `reply` is what writes it, `task` what runs that or stops it, while it runs.
    `noticed_place` is what its user was told last of its waiting, at `noticed_at` (of the event loop's clock); while
    that is 0 they were told nothing, and `seen_at` is when it was first found waiting.
    """

    __slots__ = (
        "conversation_id", "delivery", "echo", "message_id", "noticed_at", "noticed_place", "offset", "partition",
        "record", "replaces", "reply", "seen_at", "stopping", "stored", "task", "user",
    )  # fmt: skip

    def __init__(self, delivery: Delivery, record: MessageSubmitted | RegenerateRequested) -> None:
        self.delivery = delivery
        self.record = record
        self.user: UserKey = record.user
        self.conversation_id = record.conversation_id
        self.message_id = record.message_id
        self.replaces = record.attempt if isinstance(record, RegenerateRequested) else 0
        self.partition: Partition = delivery.record.partition
        self.offset = delivery.record.offset
        self.stored: StoredRequest | None = None
        self.echo: asyncio.Future[Applied] | None = None
        self.reply: Reply | None = None
        self.task: asyncio.Task[None] | None = None
        self.stopping = False
        self.seen_at = 0.0
        self.noticed_at = 0.0
        self.noticed_place = 0

    @property
    def held(self) -> bool:
        """Whether its partition is still this worker's."""
        return self.delivery.held

    @property
    def model(self) -> str:
        """The model that it asks for, "" for the usual one."""
        if self.stored is not None:
            return self.stored.model or ""
        return (self.record.model or "") if isinstance(self.record, MessageSubmitted) else ""

    @property
    def reply_id(self) -> str:
        """The row of its reply, "" before it is stored."""
        return "" if self.stored is None else self.stored.reply_id

    @property
    def incoming(self) -> Incoming:
        """What the store is given."""
        return Incoming(self.record, self.partition.topic, self.partition.number, self.offset)

    @property
    def headers(self) -> Mapping[str, str]:
        """What goes along with its outcome on the log."""
        return passed_on(self.delivery.record.headers, self.record.correlation_id)


class Requests:
    """The requests that a worker has taken and not done, by message: its first, and those for another answer."""

    def __init__(self) -> None:
        self._by_message: dict[str, dict[int, Request]] = {}

    def __iter__(self) -> Iterator[Request]:
        for of_message in self._by_message.values():
            yield from of_message.values()

    def of(self, message_id: str) -> Iterable[Request]:
        """Return the requests for answers to a message."""
        return self._by_message.get(message_id, {}).values()

    def copied_by(self, request: Request) -> Request | None:
        """Return the request that stands for the same, if there is one."""
        return self._by_message.get(request.message_id, {}).get(request.replaces)

    def add(self, request: Request) -> None:
        """Take a request in; an earlier one for the same is forgotten."""
        self._by_message.setdefault(request.message_id, {})[request.replaces] = request

    def forget(self, request: Request) -> None:
        """Take a request out. Nothing happens if it is not there, or another stands for the same."""
        if self.copied_by(request) is request:
            of_message = self._by_message[request.message_id]
            del of_message[request.replaces]
            if not of_message:
                del self._by_message[request.message_id]

    def __contains__(self, request: Request) -> bool:
        return self.copied_by(request) is request


def passed_on(headers: Mapping[str, str], correlation_id: str) -> dict[str, str]:
    """Return the headers that follow a message through the log: its correlation id and its trace."""
    kept = {CORRELATION_HEADER: correlation_id}
    if trace := headers.get(TRACE_HEADER):
        kept[TRACE_HEADER] = trace
    return kept
