"""What may be asked of `duologue chaos`: the options of the command, declared once. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec

from duologue.bench.chaos.plan import OVERLAP, Mode, Step, counted, endless
from duologue.bench.fields import means
from duologue.domain.errors import StartRefused

_SECONDS: Final = 60.0


class ChaosOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Without any count of faults they go on for `seconds`."""

    mode: Annotated[Mode, means("embedded, or distributed: every role on engines of its own.")] = "embedded"
    seconds: Annotated[float, means("No fault begins after so long; 60 if no count is given.")] = 0
    faults: Annotated[int, means("So many faults of any sort.")] = 0
    each: Annotated[int, means("So many of each sort.")] = 0
    minutes: Annotated[int, means("So many of each sort that lasts a minute.")] = 0
    kill: Annotated[str, means("So many kills of each: ai-consumer=300,api=100.")] = ""
    overlap: Annotated[float, means("The share of faults that begin beside others.", ge=0, le=1)] = OVERLAP
    seed: Annotated[int, means("The same seed is the same plan.")] = 1
    users: Annotated[int, means("Users who talk meanwhile.", ge=1, le=500)] = 8
    rate: Annotated[float, means("Messages a second of all users together.", ge=0.1, le=1000)] = 4
    report: Annotated[str, means("Folder for the report as JSON and as a page.")] = ""

    @property
    def is_counted(self) -> bool:
        """Whether the plan is so many faults, not as many as fit into a time."""
        return bool(self.faults or self.each or self.minutes or self.kill)

    @property
    def lasting_seconds(self) -> float | None:
        """How long faults begin; None: until all of the plan were made."""
        return self.seconds or (None if self.is_counted else _SECONDS)

    def steps(self) -> tuple[Iterable[Step], int | None]:
        """Return the plan, and how many faults it has if that is known. Raises StartRefused."""
        if not self.is_counted:
            return endless(self.seed, self.mode, overlap=self.overlap), None
        plan = counted(
            self.seed,
            self.mode,
            faults=self.faults,
            kills=parse_kills(self.kill),
            each=self.each,
            minutes=self.minutes,
            overlap=self.overlap,
        )
        return plan, len(plan)

    def arguments(self) -> str:
        """Return the command line that runs the same plan again."""
        kills = parse_kills(self.kill)
        words = ["duologue chaos", f"--mode {self.mode}", f"--seed {self.seed}"]
        words += [f"--users {self.users}", f"--rate {self.rate:g}"]
        words += [f"--seconds {lasting:g}"] if (lasting := self.lasting_seconds) is not None else []
        words += [f"--{name} {count}" for name in ("faults", "each", "minutes") if (count := getattr(self, name))]
        words += [f"--overlap {self.overlap:g}"] if self.overlap != OVERLAP else []
        words += ["--kill " + ",".join(f"{name}={count}" for name, count in kills.items())] if kills else []
        return " ".join(words)


def parse_kills(text: str) -> dict[str, int]:
    """Read `ai-consumer=300,api=100`. Raises StartRefused."""
    kills: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, count = part.partition("=")
        if not count.isdigit():
            raise StartRefused(f"--kill {part}: what is killed and how often is written as ai-consumer=300")
        kills[name.strip()] = int(count)
    return kills
