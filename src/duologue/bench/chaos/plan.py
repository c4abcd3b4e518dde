"""What is done to a system, and when: a pure function of a seed. The same seed is the same plan.

Nothing is said in clock time but how long a fault lasts: the next one comes when the one before has healed (the victim
is back and what was accepted before it is answered), so hundreds of kills take no longer than they must.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from duologue.domain.errors import StartRefused

Mode: TypeAlias = Literal["embedded", "distributed"]
FaultName: TypeAlias = Literal[
    "kill",
    "term",
    "pause",
    "restart",
    "flush",
    "slow",
    "cut",
    "429",
    "500",
    "silence",
    "vanish",
    "slow_reader",
    "resend",
]

MINUTE: Final = 60.0
OVERLAP: Final = 0.3
"""The share of faults that begin beside others, unless it is asked for otherwise."""
_MOST_AT_ONCE: Final = 3


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One fault.

    `seconds`: how long it lasts (a kill: how long its victim stays away). `pause_seconds`: how long to wait before it.
    `joined`: it begins without waiting until the ones before have healed.
    """

    number: int
    fault: FaultName
    target: str
    seconds: float
    pause_seconds: float = 0.0
    joined: bool = False

    @property
    def name(self) -> str:
        """What it is called in counts: processes of one role share a name."""
        return f"{self.fault} {role_of(self.target)}"


class Kind(NamedTuple):
    """A sort of fault: what, whom, how long at least and at most, and how often beside the others."""

    fault: FaultName
    target: str
    shortest: float
    longest: float
    weight: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.fault} {self.target}"


_MODEL: Final = (
    Kind("kill", "model", 0.0, 3.0),
    Kind("pause", "model", 1.0, 6.0),
    Kind("slow", "model", 1.0, 5.0),
    Kind("cut", "model", 1.0, 4.0),
    Kind("429", "model", 1.0, 4.0),
    Kind("500", "model", 1.0, 4.0),
    Kind("silence", "model", 1.0, 3.0),
)
_CLIENTS: Final = (
    Kind("vanish", "clients", 0.0, 3.0),
    Kind("slow_reader", "clients", 1.0, 8.0),
    Kind("resend", "clients", 0.0, 0.0),
)

KINDS: Final[Mapping[Mode, Sequence[Kind]]] = {
    "embedded": (
        Kind("kill", "duologue", 0.0, 1.0, 6.0),
        Kind("term", "duologue", 0.0, 1.0, 2.0),
        Kind("pause", "duologue", 0.5, 8.0, 2.0),
        Kind("kill", "valkey", 0.0, 0.0, 2.0),
        Kind("pause", "valkey", 0.5, 6.0, 2.0),
        *_MODEL,
        *_CLIENTS,
    ),
    "distributed": (
        Kind("kill", "ai-consumer", 0.0, 2.0, 6.0),
        Kind("kill", "websocket-server", 0.0, 2.0, 3.0),
        Kind("kill", "message-relay", 0.0, 2.0, 3.0),
        Kind("kill", "api", 0.0, 2.0, 2.0),
        *(Kind("term", role, 0.0, 1.0) for role in ("ai-consumer", "websocket-server", "message-relay", "api")),
        *(Kind("pause", role, 0.5, 9.0) for role in ("ai-consumer", "websocket-server", "message-relay", "api")),
        *(Kind("kill", engine, 0.0, 2.0) for engine in ("kafka", "valkey", "postgresql", "nginx")),
        *(Kind("restart", engine, 0.0, 2.0) for engine in ("kafka", "valkey", "postgresql", "nginx")),
        *(Kind("pause", engine, 0.5, 8.0) for engine in ("kafka", "valkey", "postgresql", "nginx")),
        Kind("flush", "valkey", 0.0, 0.0),
        Kind("kill", "everything", 0.0, 1.0),
        *_MODEL,
        *_CLIENTS,
    ),
}
"""What can be done in each mode, for seconds at most."""

LONG_KINDS: Final[Mapping[Mode, Sequence[Kind]]] = {
    "embedded": (
        Kind("pause", "duologue", MINUTE, MINUTE),
        Kind("kill", "duologue", MINUTE, MINUTE),
        Kind("pause", "valkey", MINUTE, MINUTE),
        Kind("pause", "model", MINUTE, MINUTE),
        Kind("kill", "model", MINUTE, MINUTE),
    ),
    "distributed": (
        *(Kind("pause", engine, MINUTE, MINUTE) for engine in ("kafka", "valkey", "postgresql", "model")),
        *(Kind("restart", engine, MINUTE, MINUTE) for engine in ("kafka", "valkey", "postgresql")),
        Kind("kill", "model", MINUTE, MINUTE),
        Kind("pause", "ai-consumer", MINUTE, MINUTE),
        Kind("pause", "websocket-server", MINUTE, MINUTE),
        Kind("pause", "message-relay", MINUTE, MINUTE),
    ),
}
"""What lasts a minute."""

PROCESSES: Final[Mapping[str, int]] = {"websocket-server": 2, "ai-consumer": 2, "message-relay": 2, "api": 1}
"""Roles of which single processes are the victims: they are called `<role>-<number>`."""


def role_of(target: str) -> str:
    """Return the role of a process' name; other targets are their own."""
    role = target.rstrip("0123456789").rstrip("-")
    return role if role in PROCESSES else target


def endless(seed: int, mode: Mode, *, overlap: float = OVERLAP) -> Iterator[Step]:
    """Return faults of every sort that lasts seconds, by their weights, without end."""
    chance = random.Random(f"chaos {mode} {seed}")  # noqa: S311  # a plan, no secret
    kinds = KINDS[mode]
    weights = [kind.weight for kind in kinds]
    return _steps(chance, (chance.choices(kinds, weights)[0] for _ in itertools.count()), overlap)


def counted(
    seed: int,
    mode: Mode,
    *,
    faults: int = 0,
    kills: Mapping[str, int] | None = None,
    each: int = 0,
    minutes: int = 0,
    overlap: float = OVERLAP,
) -> list[Step]:
    """Return a plan of so many faults, shuffled.

    Args:
        seed: what it follows from.
        mode: which system it is for.
        faults: so many of any sort that lasts seconds, by their weights.
        kills: by role or engine, so many kills.
        each: so many of each sort that lasts seconds; of those in `kills`, what that says.
        minutes: so many of each sort that lasts a minute.
        overlap: about the share of faults that begin beside others, as far as they may.

    Raises:
        StartRefused: there is nothing of that name to be killed.
    """
    chance = random.Random(f"chaos {mode} {seed}")  # noqa: S311  # a plan, no secret
    wanted = dict(kills or {})
    kinds = list(itertools.islice((chance.choices(KINDS[mode], _weights(mode))[0] for _ in itertools.count()), faults))
    for kind in KINDS[mode]:
        killed = wanted.pop(kind.target, None) if kind.fault == "kill" else None
        kinds += [kind] * (each if killed is None else killed)
    if wanted:
        known = ", ".join(kind.target for kind in KINDS[mode] if kind.fault == "kill")
        raise StartRefused(f"nothing is called {', '.join(wanted)}: what can be killed is {known}")
    kinds += [kind for kind in LONG_KINDS[mode] for _ in range(minutes)]
    chance.shuffle(kinds)
    return list(_steps(chance, iter(kinds), overlap))


def _weights(mode: Mode) -> list[float]:
    return [kind.weight for kind in KINDS[mode]]


def _steps(chance: random.Random, kinds: Iterator[Kind], overlap: float) -> Iterator[Step]:
    """Make steps of them. Faults that come together hit different targets, few at once, and none that lasts long."""
    together: list[Kind] = []
    for number, kind in enumerate(kinds, 1):
        joined = chance.random() < overlap and _may_join(kind, together)
        together = [*together, kind] if joined else [kind]
        yield Step(
            number=number,
            fault=kind.fault,
            target=_one_of(chance, kind.target),
            seconds=round(chance.uniform(kind.shortest, kind.longest), 2),
            pause_seconds=round(chance.uniform(0.0, 0.5), 2),
            joined=joined,
        )


def _may_join(kind: Kind, together: Sequence[Kind]) -> bool:
    if not together or len(together) >= _MOST_AT_ONCE:
        return False
    parts = {each.target for each in together} | {kind.target}
    return (
        kind.target not in {each.target for each in together}
        and "everything" not in parts
        and not ("duologue" in parts and "valkey" in parts)  # one is inside of the other
        and all(each.longest < MINUTE for each in (*together, kind))
    )


def _one_of(chance: random.Random, target: str) -> str:
    number = PROCESSES.get(target)
    return target if number is None else f"{target}-{chance.randint(1, number)}"
