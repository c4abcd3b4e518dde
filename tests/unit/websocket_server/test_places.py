"""What a connection remembers of conversations."""

from __future__ import annotations

from duologue.auth.tokens import Identity
from duologue.domain.ids import UserKey
from duologue.protocol.session import Place
from duologue.websocket_server.places import REMEMBERED, Author


def _author() -> Author:
    identity = Identity(UserKey("default", "ann"), "row", "ann", "guest", 0)
    return Author(identity, Place(uid="row", username="ann", character_id="a", conversation_id="home"))


def test_author_knows_the_connections_own_conversation_without_a_lookup() -> None:
    author = _author()
    assert author.recall(None, None) == "home"
    assert author.recall("home", None) == "home"
    assert author.recall("other", None) is None
    assert author.recall(None, "creative") is None


def test_author_remembers_what_was_found_and_forgets_the_oldest() -> None:
    author = _author()
    author.remember(None, "creative", "c")
    assert author.recall(None, "creative") == "c"
    for number in range(REMEMBERED):
        author.remember(f"{number}", None, f"{number}")
    assert author.recall(None, "creative") is None
    assert author.recall("0", None) == "0"
