"""What `duologue chat` is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from duologue.client.connection import ConnectionOptions
from duologue.domain.errors import StartRefused
from duologue.domain.ids import is_valid_user_id


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """Where to connect (`url`), as whom, to which character and conversation (an id, or `new`)."""

    url: str = "http://127.0.0.1:8080"
    user: str | None = None
    character: str | None = None
    conversation: str | None = None


def checked_user(user: str) -> str:
    """Return `user` if it can name a user.

    Raises:
        StartRefused: it cannot.
    """
    if not is_valid_user_id(user):
        raise StartRefused(f"{user!r} cannot be a user: 1 to 64 letters, digits and . _ @ - make one.")
    return user


def connection_options(options: ChatOptions, server: str, user: str) -> ConnectionOptions:
    """Return how to connect."""
    return ConnectionOptions(
        server=server, user_id=user, character=options.character, conversation_id=options.conversation
    )


def no_server(server: str, why: str) -> str:
    """Return the one sentence for somebody whose server does not answer."""
    detail = why.removeprefix(f"{server} cannot be reached: ")
    return (
        f"No Duologue server answers at {server} ({detail}). "
        "Start one with `make run`, or say where it is with `--url`."
    )
