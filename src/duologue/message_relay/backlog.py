"""How much of one user is under way between reading and commit. No I/O."""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

from duologue.domain.ids import UserKey
from duologue.log.port import Partition

T = TypeVar("T")

MAX_UNCOMMITTED: Final = 300
"""Records of one user that are let through and not committed. All of them may come again after a crash, and must then
still be among the keys of that user's stream by which repeats are known (rule Repeats)."""


class Backlog(Generic[T]):
    """Lets each user's records through in their order, up to a bound; the rest waits for a commit."""

    def __init__(self, *, max_uncommitted: int = MAX_UNCOMMITTED) -> None:
        self._max = max_uncommitted
        self._read: dict[Partition, deque[tuple[int, UserKey]]] = {}
        self._uncommitted: dict[UserKey, int] = {}
        self._waiting: dict[UserKey, deque[tuple[Partition, T]]] = {}

    def admit(self, partition: Partition, offset: int, user: UserKey, item: T) -> bool:
        """Take a record in, in the order of offsets. Returns whether it may go now; else `committed` will return it."""
        self._read.setdefault(partition, deque()).append((offset, user))
        if user in self._waiting or self._uncommitted.get(user, 0) >= self._max:
            self._waiting.setdefault(user, deque()).append((partition, item))
            return False
        self._uncommitted[user] = self._uncommitted.get(user, 0) + 1
        return True

    def committed(self, partition: Partition, offset: int) -> list[T]:
        """Everything of a partition before `offset` is committed. Returns what may go now, in order for each user."""
        read = self._read.get(partition)
        freed: dict[UserKey, None] = {}
        while read and read[0][0] < offset:
            user = read.popleft()[1]
            self._count_down(user)
            freed[user] = None
        return [item for user in freed for item in self._release(user)]

    def drop(self, partition: Partition) -> list[T]:
        """Forget a partition that is no longer owned. Returns what may go now, of other partitions."""
        read = self._read.pop(partition, deque())
        users = dict.fromkeys(user for _, user in read)
        waiting_here = {user: self._drop_waiting(partition, user) for user in users}
        for _, user in read:
            if waiting_here[user]:  # what waits was never counted; which of a user's entries it was does not matter
                waiting_here[user] -= 1
            else:
                self._count_down(user)
        return [item for user in users for item in self._release(user)]

    def _count_down(self, user: UserKey) -> None:
        left = self._uncommitted[user] - 1
        if left:
            self._uncommitted[user] = left
        else:
            del self._uncommitted[user]

    def _release(self, user: UserKey) -> list[T]:
        released: list[T] = []
        waiting = self._waiting.get(user)
        while waiting and self._uncommitted.get(user, 0) < self._max:
            released.append(waiting.popleft()[1])
            self._uncommitted[user] = self._uncommitted.get(user, 0) + 1
        if waiting is not None and not waiting:
            del self._waiting[user]
        return released

    def _drop_waiting(self, partition: Partition, user: UserKey) -> int:
        waiting = self._waiting.get(user, deque())
        kept = deque(entry for entry in waiting if entry[0] != partition)
        if kept:
            self._waiting[user] = kept
        else:
            self._waiting.pop(user, None)
        return len(waiting) - len(kept)
