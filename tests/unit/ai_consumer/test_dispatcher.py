"""Order within a conversation, fairness between users, limits."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from duologue.ai_consumer.dispatcher import Dispatcher
from duologue.domain.ids import UserKey
from duologue.log.port import Partition

MAX_RUNNING = 4
MAX_PER_USER = 2


@dataclass(frozen=True, eq=False)
class Request:
    user: UserKey
    conversation_id: str
    partition: Partition
    offset: int


def request(user: str, conversation: str, offset: int, partition: int = 0) -> Request:
    return Request(UserKey("default", user), f"{user}-{conversation}", Partition("t", partition), offset)


def dispatcher(max_running: int = MAX_RUNNING, max_per_user: int = MAX_PER_USER) -> Dispatcher[Request]:
    return Dispatcher(max_running=max_running, max_running_per_user=max_per_user)


def test_dispatcher_with_two_of_one_conversation_hands_out_the_second_after_the_first() -> None:
    ours = dispatcher()
    first, second = request("ann", "a", 1), request("ann", "a", 2)
    ours.add(first)
    ours.add(second)
    assert ours.take() == [first]
    assert ours.take() == []
    ours.finished(first)
    assert ours.take() == [second]


def test_dispatcher_with_requests_added_out_of_order_hands_them_out_by_offset() -> None:
    ours = dispatcher()
    late, early = request("ann", "a", 7), request("ann", "a", 3)
    ours.add(late)
    ours.add(early)
    assert ours.take() == [early]


def test_dispatcher_with_one_busy_user_lets_another_pass_at_once() -> None:
    ours = dispatcher(max_running=2, max_per_user=2)
    crowd = [request("ann", str(number), number) for number in range(1000)]
    for each in crowd:
        ours.add(each)
    running = ours.take()
    other = request("bob", "b", 1000)
    ours.add(other)
    ours.finished(running[0])
    ours.finished(running[1])
    assert other in ours.take()


def test_dispatcher_at_the_users_limit_leaves_room_for_others() -> None:
    ours = dispatcher(max_running=3, max_per_user=2)
    for number in range(5):
        ours.add(request("ann", str(number), number))
    assert len(ours.take()) == 2
    ours.add(request("bob", "b", 9))
    assert [taken.user.user_id for taken in ours.take()] == ["bob"]


def test_dispatcher_with_a_deferred_request_starts_it_first_once_woken() -> None:
    ours = dispatcher()
    first, second = request("ann", "a", 1), request("ann", "a", 2)
    ours.add(first)
    ours.add(second)
    ours.take()
    ours.defer(first)
    assert ours.take() == []
    ours.wake(first)
    ours.wake(first)
    assert ours.take() == [first]
    assert ours.take() == []


def test_dispatcher_with_a_dropped_partition_keeps_the_others() -> None:
    ours = dispatcher(max_running=1)
    running, waiting, other = request("ann", "a", 1), request("ann", "b", 2), request("bob", "c", 3, partition=1)
    ours.add(running)
    ours.take()
    ours.add(waiting)
    ours.add(other)
    assert ours.drop(Partition("t", 0)) == [waiting]
    ours.finished(running)
    assert ours.take() == [other]


class DispatcherMachine(RuleBasedStateMachine):
    """Plays everything that may happen, against what must hold at any moment.

    `passed` counts, for the user who has something to start and is below the limit, the starts of others meanwhile.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ours = dispatcher()
        self.offset = 0
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.blocked: set[str] = set()
        self.held: set[Request] = set()
        self.finished: dict[str, int] = {}
        self.passed: dict[UserKey, int] = {}

    @rule(user=st.sampled_from("abcdef"), conversation=st.sampled_from("12"), partition=st.integers(0, 1))
    def add(self, user: str, conversation: str, partition: int) -> None:
        self.offset += 1
        # A conversation is in one partition, so it is part of its name here.
        added = request(user, f"{conversation}-{partition}", self.offset, partition)
        self.ours.add(added)
        self.waiting.append(added)

    @rule()
    def take(self) -> None:
        for taken in self.ours.take():
            startable = self.startable()
            assert taken in startable, "not the next of its conversation, or a limit is passed"
            for user in {each.user for each in startable} - {taken.user}:
                self.passed[user] = self.passed.get(user, 0) + 1
                assert self.passed[user] <= 6, "others were started before this user more often than there are users"
            self.passed[taken.user] = 0
            self.waiting.remove(taken)
            self.running.append(taken)
        assert not self.startable(), "something could start and was not handed out"

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        ended = data.draw(st.sampled_from(self.running))
        self.ours.finished(ended)
        self.running.remove(ended)
        assert self.finished.get(ended.conversation_id, 0) < ended.offset
        self.finished[ended.conversation_id] = ended.offset

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def defer(self, data: st.DataObject) -> None:
        deferred = data.draw(st.sampled_from(self.running))
        self.ours.defer(deferred)
        self.running.remove(deferred)
        self.waiting.append(deferred)
        self.blocked.add(deferred.conversation_id)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def wake(self, data: st.DataObject) -> None:
        woken = data.draw(st.sampled_from(self.waiting))
        self.ours.wake(woken)
        self.blocked.discard(woken.conversation_id)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.waiting))
        self.ours.hold(held)
        self.held.add(held)

    @precondition(lambda self: self.waiting or self.running)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        released = data.draw(st.sampled_from(self.waiting + self.running))
        assert self.ours.release(released) == (released in self.held)
        self.held.discard(released)

    @precondition(lambda self: self.waiting or self.running)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.waiting + self.running))
        self.ours.discard(gone)
        self.ours.discard(gone)
        self.waiting = [each for each in self.waiting if each is not gone]
        self.running = [each for each in self.running if each is not gone]
        self.held.discard(gone)
        self.unblock_the_forgotten()

    @rule(partition=st.integers(0, 1))
    def drop(self, partition: int) -> None:
        dropped = self.ours.drop(Partition("t", partition))
        assert set(dropped) == {each for each in self.waiting if each.partition.number == partition}
        self.waiting = [each for each in self.waiting if each not in dropped]
        self.held.difference_update(dropped)
        self.unblock_the_forgotten()

    @invariant()
    def counts_agree(self) -> None:
        assert (self.ours.running, self.ours.waiting) == (len(self.running), len(self.waiting))

    @invariant()
    def nothing_is_kept_of_the_idle(self) -> None:
        users = {each.user for each in self.waiting + self.running}
        assert set(self.ours._users) == users

    def startable(self) -> set[Request]:
        """Return what may start, by the definition rather than by the algorithm."""
        if len(self.running) >= MAX_RUNNING:
            return set()
        busy = {each.conversation_id for each in self.running} | self.blocked
        users = [each.user for each in self.running]
        firsts: dict[str, Request] = {}
        for each in self.waiting:
            known = firsts.get(each.conversation_id)
            if known is None or each.offset < known.offset:
                firsts[each.conversation_id] = each
        return {
            each
            for each in firsts.values()
            if each.conversation_id not in busy and each not in self.held and users.count(each.user) < MAX_PER_USER
        }

    def unblock_the_forgotten(self) -> None:
        """A conversation without requests is forgotten, and with it that it was blocked."""
        known = {each.conversation_id for each in self.waiting + self.running}
        self.blocked &= known


TestDispatcherMachine = DispatcherMachine.TestCase
TestDispatcherMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def test_lines_of_waiting_requests_follow_the_turns_of_users_and_of_their_conversations() -> None:
    ours = dispatcher(max_running=1)
    running = request("ann", "a", 1)
    ours.add(running)
    ours.take()
    bob = [request("bob", "b", offset) for offset in (2, 6)]
    behind, beside = request("ann", "a", 3), [request("ann", "c", offset) for offset in (4, 5)]
    for each in [*bob, behind, *beside]:
        ours.add(each)

    lines = list(ours.lines())

    assert [[waiting.request for waiting in line.waiting] for line in lines] == [
        bob,
        [beside[0], behind, beside[1]],  # the conversation in which a reply runs has had its turn
    ]
    assert [(line.running, [waiting.ahead for waiting in line.waiting]) for line in lines] == [
        (0, [0, 1]),
        (1, [0, 0, 1]),
    ]
    assert lines[1].waiting[1].running is running


def test_newcomer_comes_behind_one_request_of_each_user_who_may_start_something() -> None:
    ours = dispatcher(max_running=4, max_per_user=2)
    for number in range(300):
        ours.add(request("ann", str(number), number))
    ours.add(request("bob", "b", 300))
    ours.take()
    assert ours.newcomer_place == 1  # whoever is at their limit comes behind a newcomer
    ours.add(request("bob", "c", 301))
    ours.add(request("cem", "c", 302))
    ours.take()
    assert (ours.running, ours.newcomer_place) == (4, 2)
