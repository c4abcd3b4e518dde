"""All users of a load: connected, sending at a rate, losing sockets and coming back."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from duologue.auth.tokens import TokenIssuer
from duologue.bench.load.arrivals import arrivals, at_times
from duologue.bench.load.conversations import Conversations
from duologue.bench.load.device import Device, NotLetIn
from duologue.bench.load.recorder import ModelTimes, Recorder
from duologue.bench.load.user import LoadUser, Tally
from duologue.domain.errors import StartRefused
from duologue.domain.ids import DEFAULT_TENANT, UserKey
from duologue.log.role_tasks import role_tasks

_TOKEN_SECONDS: Final = 24 * 3600
_CONNECTING: Final = 100
_MOST_DEVICES: Final = 10
_COMING_BACK: Final = 64
_LOOK_SECONDS: Final = 0.02
_TRIES: Final = 12
_FIRST_WAIT_SECONDS: Final = 0.5
_LONGEST_WAIT_SECONDS: Final = 20.0


class Entrance:
    """Where a system is, and tokens for its users, signed as a product's own backend signs them.

    Args:
        url: for HTTP.
        ws_url: for sockets.
        jwt_secret: what it verifies tokens with.
    """

    def __init__(self, url: str, ws_url: str, jwt_secret: str) -> None:
        self.url = url
        self._ws_url = ws_url
        self._issuer = TokenIssuer(jwt_secret)
        self._tokens: dict[str, str] = {}

    def token(self, user_id: str) -> str:
        """Return a user's token."""
        token = self._tokens.get(user_id)
        if token is None:
            user = UserKey(DEFAULT_TENANT, user_id)
            token = self._issuer.issue(user, uid=None, kind="external", lifetime_seconds=_TOKEN_SECONDS)
            self._tokens[user_id] = token
        return token

    def address(self, user_id: str) -> str:
        """Return the address of a user's socket."""
        return f"{self._ws_url}/ws?token={self.token(user_id)}&userid={user_id}"


class Crowd:
    """Some users. Take `crowd`, which connects them.

    Args:
        entrance: of the system.
        names: of the users.
        devices: of each.
        model: what the model takes by itself.
    """

    def __init__(
        self,
        entrance: Entrance,
        names: Sequence[str],
        *,
        devices: int = 1,
        model: ModelTimes | None = None,
        seed: int = 1,
    ) -> None:
        self.recorder = Recorder(model)
        self.conversations: Conversations | None = None
        self._model = model
        self._tally = Tally()
        self._lost: asyncio.Queue[tuple[LoadUser, Device]] = asyncio.Queue()  # each device is in it once at most
        self._random = random.Random(f"crowd {seed}")  # noqa: S311  # who comes back when, no secrets
        self._turn = 0
        self._stopping = False
        self.users: list[LoadUser] = []
        for name in names:
            user = LoadUser(name, devices, entrance.address, self._on_lost, self._tally, self.recorder)
            self.users.append(user)
        self._user_of = {id(device): user for user in self.users for device in user.devices}

    @property
    def open(self) -> int:
        """Messages that have neither an outcome on every device of their user nor a refusal."""
        return self._tally.open

    @property
    def devices(self) -> list[Device]:
        """All devices."""
        return [device for user in self.users for device in user.devices]

    def begin_phase(self) -> Recorder:
        """Forget what was measured so far, and measure anew."""
        self.recorder = Recorder(self._model)
        for user in self.users:
            user.forget()
            user.recorder = self.recorder
        return self.recorder

    async def connect(self) -> None:
        """Open every device's socket, a hundred at a time. Raises StartRefused."""
        gate = asyncio.Semaphore(_CONNECTING)

        async def connect(device: Device) -> None:
            async with gate:
                await device.connect()

        try:
            async with asyncio.TaskGroup() as tasks:
                for device in self.devices:
                    tasks.create_task(connect(device))
        except ExceptionGroup as group:
            known = group.subgroup((OSError, NotLetIn))
            if known is None:
                raise
            raise StartRefused(_words(_first(known))) from group

    def send(self, content: str, due: float) -> None:
        """Let the next user send."""
        user = self.users[self._turn % len(self.users)]
        self._turn += 1
        if self.conversations is not None:
            self.conversations.before_message(user)
        user.send(f"{content} {self._turn}", due)

    async def send_at_rate(self, rate: float, seconds: float, seed: int | str, content: str = "Hello there") -> None:
        """Send so many messages a second, all users together, each in turn; answers are not waited for."""
        await at_times(arrivals(rate, seconds, seed), lambda due: self.send(content, due))
        await asyncio.sleep(0)

    async def all_send(self, spread_seconds: float, share: float = 1.0, content: str = "Tell me a long story") -> None:
        """Let that share of all users send one message each, evenly spread over some seconds."""
        count = round(len(self.users) * share)
        await at_times(
            (spread_seconds * number / count for number in range(count)), lambda due: self.send(content, due)
        )

    async def settled(self, seconds: float) -> None:
        """Wait until every message has its outcome or refusal, at most so long."""
        deadline = time.perf_counter() + seconds
        while self.open and time.perf_counter() < deadline:  # noqa: ASYNC110  # many users' events
            await asyncio.sleep(_LOOK_SECONDS)

    async def until_answered(self, seconds: float) -> int:
        """Wait until every message has its outcome or refusal, at most so long; return how many have neither.

        Those are a breach.
        """
        await self.settled(seconds)
        if self.open:
            some = next(iter(exchange.client_id for user in self.users for exchange in user.waiting.values()))
            self.recorder.breach("unanswered messages", f"{some} after {seconds:g} s", self.open)
        return self.open

    async def lose_sockets(self, per_minute: float, seconds: float, seed: int | str) -> None:
        """Let devices lose their sockets at random, so many a minute all together; they come back at once."""

        def lose(_: float) -> None:
            user = self._random.choice(self.users)
            device = self._random.choice(user.devices)
            if device.attached:
                device.drop()
                self._lost.put_nowait((user, device))

        await at_times(arrivals(per_minute / 60, seconds, f"reconnects {seed}"), lose)

    async def come_back_at_once(self) -> None:
        """Let every device lose its socket in one moment, and connect all again; return when the last is attached."""
        for device in self.devices:
            device.drop()
        async with asyncio.TaskGroup() as tasks:
            for user in self.users:
                for device in user.devices:
                    tasks.create_task(self._come_back(user, device))

    async def run(self) -> None:
        """Bring back the devices that have lost their sockets, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(_COMING_BACK, len(self.devices))):
                tasks.create_task(self._bring_back())

    def stop(self) -> None:
        """Close every socket in order; nobody comes back."""
        self._stopping = True
        for device in self.devices:
            device.leave()

    def _on_lost(self, device: Device) -> None:
        if not self._stopping and device.last_event_id is not None:  # it was in before
            self._lost.put_nowait((self._user_of[id(device)], device))

    async def _bring_back(self) -> None:
        while True:
            await self._come_back(*await self._lost.get())

    async def _come_back(self, user: LoadUser, device: Device) -> None:
        """Connect again, at once and then with the waits that the protocol asks of a client."""
        for number in range(_TRIES):
            try:
                await user.come_back(device)
            except (OSError, NotLetIn) as error:
                user.recorder.errors[f"connecting: {getattr(error, 'code', type(error).__name__)}"] += 1
                longest = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2**number)
                await asyncio.sleep(self._random.uniform(0, longest))
            else:
                return
        user.recorder.breach("devices that could not come back", user.user_id)


def names_of(count: int, kind: str = "bench") -> list[str]:
    """Return names of users that nobody has had: a running system knows those of earlier loads."""
    run = secrets.token_hex(3)
    return [f"{kind}-{run}-{number}" for number in range(count)]


@asynccontextmanager
async def crowd(
    entrance: Entrance,
    names: Sequence[str],
    *,
    devices: int = 1,
    turns: int = 0,
    model: ModelTimes | None = None,
    seed: int = 1,
) -> AsyncIterator[Crowd]:
    """Connect users and look after their sockets until the context ends, which closes them.

    Raises:
        StartRefused: the first of them is not let in; the message says why.
    """
    if turns and devices >= _MOST_DEVICES:
        raise StartRefused(
            f"--turns needs one of a user's {_MOST_DEVICES} sockets for new conversations: fewer --devices"
        )
    async with AsyncExitStack() as stack:
        connected = Crowd(entrance, names, devices=devices, model=model, seed=seed)
        stack.callback(connected.stop)
        await connected.connect()
        if turns:
            connected.conversations = Conversations(entrance.address, turns=turns, seed=seed)
            await connected.conversations.begin(connected.users)
        tasks = await stack.enter_async_context(role_tasks())
        tasks.spawn(connected.run())
        if connected.conversations is not None:
            tasks.spawn(connected.conversations.run())
        yield connected


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _words(error: BaseException) -> str:
    if isinstance(error, NotLetIn) and error.code == "invalid_token":
        return (
            "the system does not accept tokens that are signed with this secret: give the JWT_SECRET that it runs with"
        )
    return f"a user cannot connect: {str(error) or type(error).__name__}"
