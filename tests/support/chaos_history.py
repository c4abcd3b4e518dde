"""A hand-made history of a run in which all held, to be broken in one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from duologue.bench.chaos.checks import check
from duologue.bench.chaos.history import (
    Asked,
    Closed,
    Device,
    DeviceName,
    Entry,
    Frame,
    Happened,
    History,
    Leftover,
    Opened,
    Question,
    Sent,
    StoredReply,
    Told,
)
from duologue.bench.chaos.plan import Mode
from duologue.bench.chaos.story import question, story

USER = "chaos-0"
CONVERSATION = "conversation"
KEEPER = DeviceName(name="keeper", user_id=USER, keeps_position=True)
SIMPLE = DeviceName(name="simple", user_id=USER, keeps_position=False)


def text(marker: str, number: int, words: int = 3) -> str:
    """Return the model's answer of that number."""
    return "".join(story(marker, number, words))


@dataclass
class Happening:
    """What a history is made of, to be changed before it is one.

    A user with two devices says three things. The first is answered; the worker dies while it answers the second,
    which is taken over and later regenerated; the third is stopped.
    """

    keeper: list[Entry] = field(default_factory=list)
    simple: list[Entry] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    replies: list[StoredReply] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    faults: list[Happened] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)
    not_healed: list[str] = field(default_factory=list)
    mode: Mode = "distributed"
    simple_name: DeviceName = SIMPLE

    def history(self) -> History:
        return History(
            devices=[Device(KEEPER, self.keeper), Device(self.simple_name, self.simple)],
            questions=self.questions,
            replies=self.replies,
            asked=self.asked,
            faults=self.faults,
            leftovers=self.leftovers,
            not_healed=self.not_healed,
            mode=self.mode,
        )

    def broken(self) -> set[str]:
        """Return the names of the invariants that do not hold."""
        return {breach.invariant for breach in check(self.history())}

    def index(self, kind: str, message_id: str, attempt: int | None = None, device: str = "keeper") -> int:
        """Return where a device was told a frame."""
        for place, entry in enumerate(getattr(self, device)):
            if not isinstance(entry, Told) or (entry.frame.type, entry.frame.message_id) != (kind, message_id):
                continue
            if attempt is None or entry.frame.attempt == attempt:
                return place
        raise LookupError(f"{kind} {message_id} {attempt}")

    def change(self, place: int, **fields: Any) -> None:
        """Change a frame that the keeper was told."""
        told = self.keeper[place]
        assert isinstance(told, Told)
        values = {name: getattr(told.frame, name) for name in told.frame.__struct_fields__} | fields
        self.keeper[place] = Told(at=told.at, frame=Frame(**values))

    def change_reply(self, place: int, **fields: Any) -> None:
        """Change a row of the store."""
        row = self.replies[place]
        values = {name: getattr(row, name) for name in row.__struct_fields__} | fields
        self.replies[place] = StoredReply(**values)

    def last_position(self) -> tuple[str, int]:
        """Return epoch and number of the last durable frame that the keeper was told."""
        told = [entry for entry in self.keeper if isinstance(entry, Told) and entry.frame.event_id]
        epoch, _, number = str(told[-1].frame.event_id).partition(":")
        return epoch, int(number)


class _Writer:
    """Tells both devices the same, each frame 10 ms after the one before."""

    def __init__(self, happening: Happening) -> None:
        self.now = 1000.0
        self._happening = happening
        self._event = 0

    def tell(self, kind: str, *, durable: bool = False, **fields: Any) -> None:
        self.now += 0.01
        event_id = None
        if durable:
            self._event += 1
            event_id = f"epoch:{self._event}"
        frame = Frame(type=kind, event_id=event_id, **fields)
        for entries in (self._happening.keeper, self._happening.simple):
            entries.append(Told(at=self.now, frame=frame))

    def send(self, **fields: Any) -> None:
        self.now += 0.01
        self._happening.keeper.append(Sent(at=self.now, frame=Frame(**fields)))


def clean() -> Happening:
    """Return a history without a breach."""
    made = Happening()
    writer = _Writer(made)
    for entries in (made.keeper, made.simple):
        entries.append(Opened(at=writer.now))
    connected = Frame(type="connection", event_id="epoch:0", recovered=True)
    made.keeper.append(Told(at=writer.now, frame=connected))
    made.simple.append(Told(at=writer.now, frame=connected))
    _answered(made, writer)
    _taken_over(made, writer)
    _regenerated(made, writer)
    _stopped(made, writer)
    for entries in (made.keeper, made.simple):
        entries.append(Closed(at=writer.now + 1, code=1000))
    return made


def _said(made: Happening, writer: _Writer, marker: str, position: int) -> None:
    """A message is sent, echoed and acknowledged."""
    writer.send(type="message", id=marker, content=question(marker))
    writer.tell("echo", durable=True, id=marker, message_id=f"m{position}", conversation_id=CONVERSATION)
    writer.tell("ack", id=marker, message_id=f"m{position}", conversation_id=CONVERSATION)
    made.questions.append(
        Question(
            message_id=f"m{position}",
            user_id=USER,
            conversation_id=CONVERSATION,
            client_id=marker,
            content=question(marker),
            position=position,
        )
    )


def _stored(made: Happening, writer: _Writer, turn: int, **fields: Any) -> None:
    writer.now += 0.01
    values: dict[str, Any] = {"generation": 1, "attempt": 1, "takeovers": 0, "state": "complete"}
    made.replies.append(
        StoredReply(
            reply_id=f"r{turn}",
            conversation_id=CONVERSATION,
            turn=turn,
            published=True,
            completed_at=writer.now,
            **{**values, **fields},
        )
    )


def _write(made: Happening, writer: _Writer, message_id: str, marker: str, number: int, attempt: int) -> str:
    """The model answers, told in two pieces; returns the text."""
    whole = text(marker, number)
    asked_at = writer.now + 0.005
    for seq, piece in enumerate((whole[:10], whole[10:]), 1):
        writer.tell("delta", message_id=message_id, attempt=attempt, seq=seq, content=piece)
    made.asked.append(Asked(number=number, marker=marker, at=asked_at, words=3, how="whole", ended=writer.now))
    return whole


def _answered(made: Happening, writer: _Writer) -> None:
    _said(made, writer, "a", 1)
    whole = _write(made, writer, "m1", "a", 1, attempt=1)
    _stored(made, writer, 1, message_id="m1", content=whole)
    writer.tell("response", durable=True, message_id="m1", attempt=1, content=whole)


def _taken_over(made: Happening, writer: _Writer) -> None:
    _said(made, writer, "b", 2)
    made.asked.append(Asked(number=2, marker="b", at=writer.now, words=3, how="abandoned", ended=writer.now + 0.02))
    writer.tell("delta", message_id="m2", attempt=1, seq=1, content=text("b", 2)[:8])
    made.faults.append(
        Happened(
            number=1,
            fault="kill",
            target="ai-consumer-1",
            began=writer.now,
            ended=writer.now + 0.5,
            healed=writer.now + 3,
        )
    )
    writer.now += 2
    writer.tell("reset", message_id="m2", attempt=2, reason="takeover")
    whole = _write(made, writer, "m2", "b", 3, attempt=2)
    _stored(made, writer, 2, message_id="m2", content=whole, attempt=2, takeovers=1)
    writer.tell("response", durable=True, message_id="m2", attempt=2, content=whole)


def _regenerated(made: Happening, writer: _Writer) -> None:
    writer.send(type="regenerate", id="again", message_id="m2", attempt=2)
    writer.tell("ack", id="again", message_id="m2", conversation_id=CONVERSATION)
    writer.tell("reset", message_id="m2", attempt=3, reason="regenerate")
    whole = _write(made, writer, "m2", "b", 4, attempt=3)
    _stored(made, writer, 3, message_id="m2", content=whole, attempt=3, generation=2)
    writer.tell("response", durable=True, message_id="m2", attempt=3, content=whole, generation=2)


def _stopped(made: Happening, writer: _Writer) -> None:
    _said(made, writer, "c", 3)
    made.asked.append(Asked(number=5, marker="c", at=writer.now, words=3, how="abandoned", ended=writer.now + 0.05))
    part = text("c", 5)[:12]
    writer.tell("delta", message_id="m3", attempt=1, seq=1, content=part)
    writer.send(type="stop", id="halt", message_id="m3")
    _stored(made, writer, 4, message_id="m3", content=part, state="stopped", finish_reason="stopped")
    writer.tell("response", durable=True, message_id="m3", attempt=1, content=part, finish_reason="stopped")


def reconnected(
    entries: list[Entry], at: float, event_id: str, *, recovered: bool = True, last: str | None = None
) -> None:
    """Let a device connect once more."""
    entries.append(Opened(at=at, last_event_id=last))
    entries.append(Told(at=at, frame=Frame(type="connection", event_id=event_id, recovered=recovered)))
