"""What a run leaves behind: what clients were told, what the store has, what the model was asked, what was done to it.

Times (`at`, `began`, `ended`) are seconds since the Unix epoch; all processes share one machine and its clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

from duologue.bench.chaos.story import question

ENDED: Final = frozenset(["complete", "failed", "stopped"])
"""The states of a reply that has its outcome."""

# What clients were told


class Frame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A frame as it was on the socket, as far as it is looked at."""

    type: str = "message"
    event_id: str | None = None
    id: str | None = None
    message_id: str | None = None
    conversation_id: str | None = None
    content: str | None = None
    code: str | None = None
    message: str | None = None
    attempt: int | None = None
    generation: int | None = None
    seq: int | None = None
    from_seq: int | None = None
    finish_reason: str | None = None
    recovered: bool | None = None
    temporary: bool | None = None
    retry_after: float | None = None
    features: list[str] | None = None
    server_id: str | None = None
    reason: str | None = None
    last_event_id: str | None = None


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag="opened"):
    """A socket was opened; `last_event_id` is what it asked for."""

    at: float
    last_event_id: str | None = None


class Told(msgspec.Struct, frozen=True, kw_only=True, tag="told"):
    """The server sent a frame."""

    at: float
    frame: Frame


class Sent(msgspec.Struct, frozen=True, kw_only=True, tag="sent"):
    """The client sent a frame; `again` if not for the first time."""

    at: float
    frame: Frame
    again: bool = False


class Closed(msgspec.Struct, frozen=True, kw_only=True, tag="closed"):
    """The socket ended. `by_client`: vanished or closed from here; then `code` says nothing of the server."""

    at: float
    code: int
    by_client: bool = False


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A reply as the history over HTTP has it."""

    message_id: str
    attempt: int
    state: str

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class Read(msgspec.Struct, frozen=True, kw_only=True, tag="read"):
    """The client read the history, since the server could not replay all."""

    at: float
    rows: list[Row]


Entry: TypeAlias = Opened | Told | Sent | Closed | Read


class DeviceName(msgspec.Struct, frozen=True, kw_only=True):
    """Whose device it is. `keeps_position`: it connects with `last_event_id`. `alone`: the user has no other."""

    name: str
    user_id: str
    keeps_position: bool
    alone: bool = False


@dataclass(frozen=True)
class Device:
    """A client and all it was told and sent, in that order. `entries` can be gone through again and again."""

    name: DeviceName
    entries: Iterable[Entry]

    def told(self) -> Iterator[Told]:
        """Yield what the server sent."""
        return (entry for entry in self.entries if isinstance(entry, Told))


# What the store has


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A user's message."""

    message_id: str
    user_id: str
    conversation_id: str
    client_id: str
    content: str
    position: int


class StoredReply(msgspec.Struct, frozen=True, kw_only=True):
    """A request for an answer and what came of it. Unfinished ones have no `completed_at`."""

    reply_id: str
    message_id: str
    conversation_id: str
    turn: int
    generation: int
    attempt: int
    takeovers: int
    state: str
    content: str
    published: bool
    finish_reason: str | None = None
    error_code: str | None = None
    completed_at: float | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED


# What the model was asked


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request to the model. `how` is empty if the model was killed meanwhile; `words` is what a whole answer has."""

    number: int
    marker: str
    at: float
    words: int
    how: Literal["", "whole", "refused", "cut", "silent", "abandoned"] = ""
    ended: float | None = None


# What was done, and what is left


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """A fault as it was made. `healed`: when all that was accepted before it had been answered."""

    number: int
    fault: str
    target: str
    began: float
    ended: float
    healed: float | None = None
    exit_code: int | None = None

    def meets(self, begin: float, end: float) -> bool:
        """Tell whether something of it, its healing included, falls between two times."""
        return self.began < end and (self.healed or self.ended) > begin


class Leftover(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is still there after a quiet time, and should not be."""

    kind: Literal["task", "file", "key", "socket", "claim", "work"]
    where: str
    detail: str


@dataclass(frozen=True)
class History:
    """All of it. `not_healed` names, in words, what did not come back in time."""

    devices: Sequence[Device] = ()
    questions: Sequence[Question] = ()
    replies: Sequence[StoredReply] = ()
    asked: Sequence[Asked] = ()
    faults: Sequence[Happened] = ()
    leftovers: Sequence[Leftover] = ()
    not_healed: Sequence[str] = ()
    mode: Literal["embedded", "distributed"] = "embedded"
    by_marker: dict[str, list[Asked]] = field(init=False)
    by_message: dict[str, list[StoredReply]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_marker", _grouped((each.marker, each) for each in self.asked))
        ordered = sorted(self.replies, key=lambda each: each.generation)
        object.__setattr__(self, "by_message", _grouped((each.message_id, each) for each in ordered))

    def marker(self, asked: Question) -> str:
        """Return the marker of a user's message, which is the frame's `id`."""
        return asked.client_id if asked.content == question(asked.client_id) else ""


def _grouped(pairs: Iterable[tuple[str, object]]) -> dict[str, list[object]]:
    groups: dict[str, list[object]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


# Files

ENTRIES: Final = msgspec.json.Decoder(Entry)
_names: Final = msgspec.json.Decoder(DeviceName)


class EntryFile:
    """The entries of one device in a file of JSON lines, read anew each time. The first line names the device."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[Entry]:
        with self._path.open("rb") as lines:
            next(lines)
            for line in lines:
                yield ENTRIES.decode(line)


def read_devices(folder: Path) -> list[Device]:
    """Return the devices whose files are in a folder."""
    devices = []
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as lines:
            devices.append(Device(_names.decode(next(lines)), EntryFile(path)))
    return devices


class _AskedLine(msgspec.Struct, frozen=True, kw_only=True):
    """The begin of an answer, or its end (`how` is given)."""

    number: int
    at: float
    marker: str = ""
    words: int = 0
    how: Literal["", "whole", "refused", "cut", "silent", "abandoned"] = ""


def read_asked(path: Path) -> list[Asked]:
    """Return what a model's log tells. A last line that was cut when the model was killed is left out."""
    decoder = msgspec.json.Decoder(_AskedLine)
    asked: dict[int, Asked] = {}
    for text in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            line = decoder.decode(text)
        except msgspec.DecodeError:
            continue
        if not line.how:
            asked[line.number] = Asked(number=line.number, marker=line.marker, at=line.at, words=line.words)
        elif line.number in asked and not asked[line.number].how:  # the first end counts
            asked[line.number] = msgspec.structs.replace(asked[line.number], how=line.how, ended=line.at)
    return list(asked.values())
