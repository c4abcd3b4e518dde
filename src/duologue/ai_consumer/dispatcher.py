"""Which request for an answer runs next: order within a conversation, fairness between users. No I/O, no clock.

A user's ready conversations take turns, and the users with something to start take turns: somebody with a thousand
waiting messages delays another one's by one reply a round at most. Every operation costs the same however much waits,
but for `hold`, `discard` and `drop`, which are rare.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

from duologue.domain.ids import UserKey
from duologue.log.port import Partition


class Queueable(Protocol):
    """What the dispatcher needs to know of a request."""

    @property
    def user(self) -> UserKey: ...

    @property
    def conversation_id(self) -> str: ...

    @property
    def partition(self) -> Partition: ...

    @property
    def offset(self) -> int:
        """Its place on the log. A conversation's records are all in one partition and draw their turns in log order,
        so this order is the order of turns."""
        ...


R = TypeVar("R", bound=Queueable)


class Waiting(NamedTuple, Generic[R]):
    """A request that waits: how many of its conversation wait before it, and which of that runs now."""

    request: R
    ahead: int
    running: R | None


class Line(NamedTuple, Generic[R]):
    """What waits of one user, about in the order in which it will start, and how many replies of theirs run."""

    running: int
    waiting: list[Waiting[R]]


class _Conversation(Generic[R]):
    __slots__ = ("blocked", "held", "running", "user", "waiting")

    def __init__(self, user: _User[R]) -> None:
        self.user = user
        self.waiting: deque[R] = deque()
        self.held: set[R] = set()
        self.running: R | None = None
        self.blocked = False

    @property
    def startable(self) -> bool:
        if not self.waiting or self.running is not None or self.blocked:
            return False
        return self.waiting[0] not in self.held


class _User(Generic[R]):
    """`ready` holds the startable conversations, each once; `listed` tells whether the user is in the round."""

    __slots__ = ("conversations", "listed", "ready", "running")

    def __init__(self) -> None:
        self.conversations: dict[str, _Conversation[R]] = {}
        self.ready: deque[_Conversation[R]] = deque()
        self.running = 0
        self.listed = False


class Dispatcher(Generic[R]):
    """Holds requests from their arrival to their end.

    A request waits (`add`), runs (handed out by `take`) and ends (`finished`). It may also go back (`defer`) until its
    conversation is woken (`wake`), keep its place without being handed out (`hold`, `release`), or leave before its end
    (`discard`, `drop`).
    """

    def __init__(self, *, max_running: int, max_running_per_user: int) -> None:
        self._max_running = max_running
        self._max_per_user = max_running_per_user
        self._users: dict[UserKey, _User[R]] = {}
        self._round: deque[_User[R]] = deque()
        self._running = 0
        self._waiting = 0

    @property
    def running(self) -> int:
        """Requests handed out and not finished."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests not handed out yet."""
        return self._waiting

    @property
    def newcomer_place(self) -> int:
        """The place in the queue, from 1, of a request that comes now, of a user of whom nothing else is here.

        Whoever has something to start comes before it once; whoever may start nothing now comes behind it later.
        """
        return len(self._round) + 1

    def lines(self) -> Iterator[Line[R]]:
        """Yield what waits of each user, in the order in which users take turns.

        Requests may come and go between two lines: each is as it stands when it is reached.
        """
        later = [user for user in self._users.values() if not user.listed]
        for user in [*self._round, *later]:
            if waiting := _line_of(user):
                yield Line(user.running, waiting)

    def add(self, request: R) -> None:
        """Let a request wait for its turn."""
        conversation = self._conversation(request)
        was_startable = conversation.startable
        waiting = conversation.waiting
        if waiting and waiting[-1].offset > request.offset:
            insort(waiting, request, key=_by_offset)
        else:
            waiting.append(request)
        self._waiting += 1
        if not was_startable:
            self._list(conversation)

    def take(self) -> list[R]:
        """Hand out every request that may start now; each counts as running until it is `finished` or deferred."""
        taken: list[R] = []
        while self._round and self._running < self._max_running:
            user = self._round.popleft()
            user.listed = False
            taken.append(self._start(user))
            self._enlist(user)
        return taken

    def finished(self, request: R) -> None:
        """A running request has its outcome: its place is free, and its conversation goes on."""
        conversation = self._stop(request)
        self._list(conversation)
        self._forget_if_idle(request, conversation)

    def defer(self, request: R) -> None:
        """A running request cannot start yet: it waits, first of its conversation, until that is woken."""
        conversation = self._stop(request)
        conversation.waiting.appendleft(request)
        conversation.blocked = True
        self._waiting += 1

    def wake(self, request: R) -> None:
        """Let the conversation of a deferred request go on. Nothing happens if it is not blocked."""
        conversation = self._find(request)
        if conversation is not None and conversation.blocked:
            conversation.blocked = False
            self._list(conversation)

    def hold(self, request: R) -> None:
        """Let a waiting request keep its place, and everything behind it wait, until `release`."""
        conversation = self._find(request)
        if conversation is None or request not in conversation.waiting:
            raise ValueError("the request does not wait")
        was_startable = conversation.startable
        conversation.held.add(request)
        self._relist(conversation, was_startable)

    def release(self, request: R) -> bool:
        """Let a request that was held wait for its turn again; return False if it is not here any more."""
        conversation = self._find(request)
        if conversation is None or request not in conversation.held:
            return False
        was_startable = conversation.startable
        conversation.held.remove(request)
        self._relist(conversation, was_startable)
        return True

    def discard(self, request: R) -> None:
        """Take out a request wherever it is: it needs no answer, or not here. Nothing happens if it is not there."""
        conversation = self._find(request)
        if conversation is None:
            return
        if conversation.running is request:
            self.finished(request)
        elif request in conversation.waiting:
            was_startable = conversation.startable
            conversation.waiting.remove(request)
            conversation.held.discard(request)
            self._waiting -= 1
            self._relist(conversation, was_startable)
            self._forget_if_idle(request, conversation)

    def drop(self, partition: Partition) -> list[R]:
        """Take out everything of a partition that waits, and return it. What runs stays until it is finished."""
        dropped = [
            request
            for user in self._users.values()
            for conversation in user.conversations.values()
            for request in conversation.waiting
            if request.partition == partition
        ]
        for request in dropped:
            self.discard(request)
        return dropped

    def _start(self, user: _User[R]) -> R:
        conversation = user.ready.popleft()
        request = conversation.waiting.popleft()
        conversation.running = request
        user.running += 1
        self._running += 1
        self._waiting -= 1
        return request

    def _stop(self, request: R) -> _Conversation[R]:
        conversation = self._find(request)
        if conversation is None or conversation.running is not request:
            raise ValueError("the request is not running")
        conversation.running = None
        conversation.user.running -= 1
        self._running -= 1
        self._enlist(conversation.user)
        return conversation

    def _list(self, conversation: _Conversation[R]) -> None:
        if conversation.startable:
            conversation.user.ready.append(conversation)
            self._enlist(conversation.user)

    def _enlist(self, user: _User[R]) -> None:
        if not user.listed and user.ready and user.running < self._max_per_user:
            user.listed = True
            self._round.append(user)

    def _relist(self, conversation: _Conversation[R], was_startable: bool) -> None:
        """What waits has changed in its middle, or what is held."""
        if was_startable and not conversation.startable:
            self._unlist(conversation)
        elif not was_startable:
            self._list(conversation)

    def _unlist(self, conversation: _Conversation[R]) -> None:
        """The conversation has nothing to start any more: neither it nor, without another, its user may be listed."""
        user = conversation.user
        user.ready.remove(conversation)
        if user.listed and not user.ready:
            user.listed = False
            self._round.remove(user)

    def _conversation(self, request: R) -> _Conversation[R]:
        user = self._users.get(request.user)
        if user is None:
            user = self._users[request.user] = _User()
        conversation = user.conversations.get(request.conversation_id)
        if conversation is None:
            conversation = user.conversations[request.conversation_id] = _Conversation(user)
        return conversation

    def _find(self, request: R) -> _Conversation[R] | None:
        user = self._users.get(request.user)
        return None if user is None else user.conversations.get(request.conversation_id)

    def _forget_if_idle(self, request: R, conversation: _Conversation[R]) -> None:
        if conversation.running is not None or conversation.waiting:
            return
        del conversation.user.conversations[request.conversation_id]
        if not conversation.user.conversations:
            del self._users[request.user]


def _by_offset(request: Queueable) -> int:
    return request.offset


def _line_of(user: _User[R]) -> list[Waiting[R]]:
    """A user's conversations take turns as well; one in which a reply runs has had the first."""
    line = [
        Waiting(request, ahead, conversation.running)
        for conversation in user.conversations.values()
        for ahead, request in enumerate(conversation.waiting)
    ]
    if len(user.conversations) > 1:
        line.sort(key=_turn)
    return line


def _turn(waiting: Waiting[R]) -> tuple[int, int]:
    return waiting.ahead + (waiting.running is not None), waiting.request.offset
