"""Conversations that end and are followed by others."""

from __future__ import annotations

from duologue.bench.load.conversations import Conversations
from duologue.bench.load.crowd import Crowd, Entrance
from duologue.bench.load.recorder import Recorder
from duologue.bench.load.user import LoadUser, Tally


def user() -> LoadUser:
    return LoadUser("ada", 1, lambda name: name, lambda _: None, Tally(), Recorder())


def lengths(turns: int, seed: int, count: int = 50) -> list[int]:
    """Return how many messages each conversation has had, when the next one is always there."""
    conversations, talker = Conversations(lambda name: name, turns=turns, seed=seed), user()
    found: dict[str, int] = {}
    while len(found) < count:
        talker.talk.following = talker.talk.following or f"conversation {len(found)}"
        conversations.before_message(talker)
        found[talker.talk.conversation_id] = found.get(talker.talk.conversation_id, 0) + 1
    return list(found.values())[:-1]


def test_conversations_have_their_turns_half_as_many_more_or_less() -> None:
    found = lengths(8, seed=1)
    assert set(found) <= set(range(4, 13))
    assert len(set(found)) > 4
    assert found == lengths(8, seed=1)
    assert found != lengths(8, seed=2)


def test_message_stays_where_it_is_while_the_next_conversation_is_not_made() -> None:
    conversations, talker = Conversations(lambda name: name, turns=2, seed=1), user()
    talker.talk.following = "first"
    for _ in range(10):
        conversations.before_message(talker)
    assert talker.talk.conversation_id == "first"
    assert conversations.late >= 7


def test_without_turns_nobody_leaves_the_default_conversation() -> None:
    everybody = Crowd(Entrance("http://127.0.0.1:1", "ws://127.0.0.1:1", "s" * 32), ["ada"])
    everybody.send("Hello", 0.0)
    (talker,) = everybody.users
    assert (talker.talk.conversation_id, everybody.conversations) == ("", None)
    (sent,) = talker.waiting.values()
    assert b"conversation_id" not in sent.frame
