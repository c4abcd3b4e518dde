"""Names in Redis: a user's keys and channel, and the ids of durable frames."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from duologue.domain.ids import DEFAULT_TENANT, UserKey

_EVENT_ID: Final = re.compile(r"([A-Za-z0-9_.-]{1,40}):([0-9]{1,15})")


class EventPosition(NamedTuple):
    """A place in a user's stream of durable frames: behind frame `number` of `epoch`; 0 is before the first."""

    epoch: str
    number: int

    @property
    def event_id(self) -> str:
        """The form that clients see."""
        return f"{self.epoch}:{self.number}"


NOWHERE: Final = EventPosition("", 0)
"""A position of no epoch: what an id that cannot be read becomes. Nothing can be recovered from it."""


def parse_event_id(text: str) -> EventPosition:
    """Read an `event_id` as a client sent it; `NOWHERE` if it is none of ours."""
    match = _EVENT_ID.fullmatch(text)
    return EventPosition(match[1], int(match[2])) if match else NOWHERE


def epochs() -> Iterator[str]:
    """Return names for new epochs, no two alike, in this process or another."""
    prefix = secrets.token_hex(4)
    return (f"{prefix}{count:x}" for count in itertools.count())


def probe_channel() -> str:
    """Return a channel that is nobody else's, for a process to hear itself on.

    No user's: no tenant has an empty name. Among the users' channels nevertheless, since operators may let this program
    have no others.
    """
    return f"user::{secrets.token_hex(8)}"


class UserNames:
    """A user's keys. One hash tag, so that a cluster keeps them together and a script may use them all."""

    __slots__ = ("applied", "channel", "events", "pending", "rate", "repeat_rate", "state", "tag")

    def __init__(self, user: UserKey) -> None:
        self.tag = f"{{{user.tenant}:{user.user_id}}}"
        self.state = f"state:{self.tag}"
        self.events = f"events:{self.tag}"
        self.applied = f"applied:{self.tag}"
        self.pending = f"pending:{self.tag}"
        self.rate = f"rate:{self.tag}"
        self.repeat_rate = f"rate:{self.tag}:repeats"
        prefix = "user:" if user.tenant == DEFAULT_TENANT else f"user:{user.tenant}:"
        self.channel = prefix + user.user_id

    def live(self, message_id: str) -> str:
        """The key of a live text; `state.lua` makes the same."""
        return f"live:{self.tag}:{message_id}"

    def note(self, message_id: str) -> str:
        """The key of what is remembered of a message that the log has."""
        return f"note:{self.tag}:{message_id}"

    def command_note(self, command: str) -> str:
        """The key of what is remembered of a stop or a regenerate."""
        return f"command:{self.tag}:{command}"


@lru_cache(maxsize=16_384)
def names_of(user: UserKey) -> UserNames:
    """Return a user's keys."""
    return UserNames(user)
