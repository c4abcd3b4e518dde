"""The bound of one user's uncommitted records."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from duologue.domain.ids import UserKey
from duologue.log.port import Partition
from duologue.message_relay.backlog import Backlog

ANN, BOB = UserKey("default", "ann"), UserKey("default", "bob")
ZERO = Partition("responses", 0)
MAX = 3


def test_backlog_over_the_bound_holds_that_user_back_only() -> None:
    backlog: Backlog[int] = Backlog(max_uncommitted=2)
    assert [backlog.admit(ZERO, offset, ANN, offset) for offset in (1, 2, 3)] == [True, True, False]
    assert backlog.admit(ZERO, 4, BOB, 4)
    assert backlog.committed(ZERO, 2) == [3]


class BacklogMachine(RuleBasedStateMachine):
    """Against a plain model: what was let through and is not committed, by user."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: Backlog[tuple[Partition, int]] = Backlog(max_uncommitted=MAX)
        self.next = 1
        self.through: dict[tuple[Partition, int], UserKey] = {}
        self.waiting: dict[tuple[Partition, int], UserKey] = {}

    @rule(user=st.sampled_from([ANN, BOB]), number=st.integers(0, 1))
    def admit(self, user: UserKey, number: int) -> None:
        partition, offset = Partition("responses", number), self.next
        self.next += 1
        now = self.ours.admit(partition, offset, user, (partition, offset))
        (self.through if now else self.waiting)[partition, offset] = user

    @rule(number=st.integers(0, 1), data=st.data())
    def commit(self, number: int, data: st.DataObject) -> None:
        partition = Partition("responses", number)
        # What waits is not done, so nothing at or above it is committed.
        end = min((offset for where, offset in self.waiting if where == partition), default=self.next)
        offset = data.draw(st.integers(1, end))
        for place in [place for place in self.through if place[0] == partition and place[1] < offset]:
            del self.through[place]
        self.let_through(self.ours.committed(partition, offset))

    @rule(number=st.integers(0, 1))
    def drop(self, number: int) -> None:
        partition = Partition("responses", number)
        self.through = {place: user for place, user in self.through.items() if place[0] != partition}
        self.waiting = {place: user for place, user in self.waiting.items() if place[0] != partition}
        self.let_through(self.ours.drop(partition))

    def let_through(self, places: list[tuple[Partition, int]]) -> None:
        for place in places:
            user = self.waiting.pop(place)
            assert all(other[1] > place[1] for other, owner in self.waiting.items() if owner == user), "out of order"
            self.through[place] = user

    @invariant()
    def nobody_is_over_the_bound_or_waits_below_it(self) -> None:
        for user in (ANN, BOB):
            under_way = sum(owner == user for owner in self.through.values())
            assert under_way <= MAX
            assert under_way == MAX or user not in self.waiting.values()


TestBacklogMachine = BacklogMachine.TestCase
TestBacklogMachine.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
