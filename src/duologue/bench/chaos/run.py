"""One run: a system, a model and a crowd are started, a plan is carried out, and what it leaves behind is collected."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import msgspec

from duologue.bench.chaos.clients import Finish, Finished, Stats, Talk
from duologue.bench.chaos.faults import Faults
from duologue.bench.chaos.history import Happened, History, Leftover, read_asked, read_devices
from duologue.bench.chaos.leftovers import Baseline, baseline, leftovers
from duologue.bench.chaos.plan import Step
from duologue.bench.chaos.stored import Stored, read_store
from duologue.bench.chaos.subject import Subject
from duologue.bench.chaos.tools import Tool
from duologue.domain.errors import DuologueError, StartRefused

_LOOK_SECONDS: Final = 0.1
_BEGIN_SECONDS: Final = 60.0
_WARM_ANSWERS: Final = 3
_QUIET_SECONDS: Final = 3.0
_MOST_WORDS: Final = 2000
_LEFTOVER_SECONDS: Final = 15.0
_STORE_SECONDS: Final = 20.0


@dataclass(frozen=True)
class Load:
    """The crowd: how many users, how many messages a second all together, and what its behaviour follows from.

    `heal_seconds`: how long after a fault, and in the end, what is owed may take; longer is stuck.
    """

    users: int = 8
    rate: float = 4.0
    seed: int = 1
    heal_seconds: float = 120.0


class Progress(Protocol):
    """Who is told how a run goes."""

    def begin(self, words: str) -> None:
        """A part of the run begins."""
        ...

    def step(self, step: Step, done: int) -> None:
        """A fault begins, after so many."""
        ...

    def answered(self, messages: int) -> None:
        """So many messages were answered."""
        ...


class Silent:
    """Tells nobody."""

    def begin(self, words: str) -> None: ...
    def step(self, step: Step, done: int) -> None: ...
    def answered(self, messages: int) -> None: ...


@dataclass
class _Record:
    """What is noted while it runs."""

    happened: list[Happened] = field(default_factory=list)
    not_healed: list[str] = field(default_factory=list)


async def run(
    steps: Iterable[Step],
    load: Load,
    subject_of: Callable[[Path, Mapping[str, str]], AbstractAsyncContextManager[Subject]],
    folder: Path,
    *,
    seconds: float | None = None,
    settings: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> History:
    """Carry a plan out and return what it left behind.

    Args:
        steps: the faults, in their order.
        load: the crowd.
        subject_of: given a folder and settings, the context of the system (`open_subject` of a mode).
        folder: for data, logs and what clients and model wrote down; it is there, and its path is short.
        seconds: after which no further fault begins.
        settings: more of the system's.
        progress: who is told.

    Raises:
        StartRefused: something of the run itself cannot be started.
    """
    tell = progress or Silent()
    async with AsyncExitStack() as stack:
        model = _model(folder, load.seed)
        stack.push_async_callback(model.aclose)
        await model.start()
        tell.begin("starting the system")
        every = {"OPENAI_BASE_URL": f"{model.url}/v1", **(settings or {})}
        subject = await stack.enter_async_context(subject_of(folder, every))
        before = await baseline(subject)
        clients = _clients(folder, subject, load)
        stack.push_async_callback(clients.aclose)
        await clients.start()
        direction = _Direction(subject, model, clients, load, tell)
        await direction.begin()
        await direction.carry_out(steps, seconds)
        await direction.end()
        tell.begin("comparing")
        stored, left = await _at_the_end(subject, before, direction.record, load.heal_seconds)
    return History(
        devices=read_devices(folder / "clients"),
        questions=stored.questions,
        replies=stored.replies,
        asked=read_asked(folder / "model.jsonl"),
        faults=direction.record.happened,
        leftovers=left,
        not_healed=direction.record.not_healed,
        mode=subject.mode,
    )


def _model(folder: Path, seed: int) -> Tool:
    arguments = ["--log", str(folder / "model.jsonl"), "--seed", str(seed)]
    return Tool("duologue.bench.chaos.model", arguments, folder / "model.log", "/health")


def _clients(folder: Path, subject: Subject, load: Load) -> Tool:
    (folder / "clients").mkdir()
    arguments = ["--url", subject.system.url, "--ws-url", subject.system.ws_url, "--folder", str(folder / "clients")]
    arguments += ["--users", str(load.users), "--seed", str(load.seed)]
    return Tool("duologue.bench.chaos.clients", arguments, folder / "clients.log", "/stats")


class _Direction:
    """Carries the plan out: each fault when those before have healed, unless it joins them."""

    def __init__(self, subject: Subject, model: Tool, clients: Tool, load: Load, tell: Progress) -> None:
        self.record = _Record()
        self._load = load
        self._subject = subject
        self._clients = clients
        self._faults = Faults(subject, model, clients)
        self._tell = tell
        self._going: list[tuple[Step, asyncio.Task[Happened]]] = []

    async def begin(self) -> None:
        """Let everybody connect and talk, until the first answers have come. Raises StartRefused."""
        self._tell.begin("letting clients in")
        if not await self._until(lambda stats: stats.ready, _BEGIN_SECONDS):
            raise StartRefused(f"the clients are not connected within {_BEGIN_SECONDS:g} s")
        await self._clients.post("/talk", Talk(self._load.rate), dict)
        if not await self._until(lambda stats: stats.answered >= _WARM_ANSWERS, _BEGIN_SECONDS):
            raise StartRefused(f"no message is answered within {_BEGIN_SECONDS:g} s")

    async def carry_out(self, steps: Iterable[Step], seconds: float | None) -> None:
        """Make the faults; stops early if something does not heal, since nothing after it would tell anything."""
        loop = asyncio.get_running_loop()
        end = None if seconds is None else loop.time() + seconds
        for done, step in enumerate(steps):
            if not step.joined and not await self._healed():
                return
            if end is not None and loop.time() >= end:
                break
            await asyncio.sleep(step.pause_seconds)
            self._tell.step(step, done)
            self._going.append((step, asyncio.create_task(self._make(step), name=step.name)))
            await asyncio.sleep(0)
        await self._healed()

    async def _make(self, step: Step) -> Happened:
        began = time.time()
        code: int | None = None
        try:
            code = await self._faults.make(step)
        except (StartRefused, OSError) as error:  # it does not come back, or had ended by itself
            self.record.not_healed.append(f"{step.name} ({step.number}): {str(error)[:_MOST_WORDS]}")
            await self._restore()
        return Happened(
            number=step.number,
            fault=step.fault,
            target=step.target,
            began=began,
            ended=time.time(),
            exit_code=code,
        )

    async def _healed(self) -> bool:
        """Wait until what was hurt is back and all that was accepted before is answered; note when that was."""
        if not self._going:
            return True
        happened = await asyncio.gather(*(task for _, task in self._going))
        self._going = []
        self._note_deaths()
        last = max(each.ended for each in happened)
        answered = (await self._stats()).answered
        healed = await self._until(
            lambda stats: (stats.oldest_owed is None or stats.oldest_owed > last) and stats.answered > answered,
            self._load.heal_seconds,
        )
        if not healed:
            what = ", ".join(f"{each.fault} {each.target} ({each.number})" for each in happened)
            words = f"what was accepted before is not answered within {self._load.heal_seconds:g} s"
            self.record.not_healed.append(f"{what}: {words}, {await self._stats()}")
            self.record.happened += happened
            return False
        now = time.time()
        self.record.happened += [msgspec.structs.replace(each, healed=now) for each in happened]
        return True

    def _note_deaths(self) -> None:
        """A process that nobody ended runs still: what is away comes back without a restart."""
        for name, process in self._subject.processes().items():
            if not process.running:
                self.record.not_healed.append(f"{name} has ended by itself: {process.output()[-1000:]}")

    async def end(self) -> None:
        """Let all run, wait until nothing is owed, and close every connection."""
        self._tell.begin("waiting until nothing is owed")
        await self._restore()
        seconds = self._load.heal_seconds
        finished = await self._clients.post("/finish", Finish(seconds), Finished, seconds=seconds + 30)
        self.record.not_healed += [f"at the end: {words}" for words in finished.waiting]

    async def _restore(self) -> None:
        try:
            await self._faults.restore()
        except StartRefused as error:
            self.record.not_healed.append(f"it cannot be started again: {str(error)[:_MOST_WORDS]}")

    async def _stats(self) -> Stats:
        stats = await self._clients.get("/stats", Stats)
        self._tell.answered(stats.answered)
        return stats

    async def _until(self, condition: Callable[[Stats], bool], seconds: float) -> bool:
        """Wait until something holds of the crowd; return whether it did in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not condition(await self._stats()):
            if loop.time() > deadline:
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        return True


async def _at_the_end(
    subject: Subject, before: Baseline, record: _Record, heal_seconds: float
) -> tuple[Stored, Sequence[Leftover]]:
    """Give the system a quiet time, and as long as it takes to tidy up within bounds; return what it then has."""
    await asyncio.sleep(_QUIET_SECONDS)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + min(_LEFTOVER_SECONDS, heal_seconds)
    while True:
        try:
            left = await leftovers(subject, before)
            stored = await read_store(subject.database_url)
        except DuologueError as error:
            if loop.time() > deadline:
                record.not_healed.append(f"the store cannot be read: {error}")
                raise
        else:
            if not left or loop.time() > deadline:
                return stored, [*left, *stored.leftovers]
        await asyncio.sleep(_LOOK_SECONDS * 5)


@asynccontextmanager
async def run_folder(keep: Callable[[], bool]) -> AsyncIterator[Path]:
    """Make a folder with a short path for a run's data; it stays if `keep` says so in the end."""
    folder = Path(tempfile.mkdtemp(prefix="duologue-chaos-"))
    try:
        yield folder
    finally:
        if not keep():
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
