"""The crowd as a process of its own: users who talk all the while, checked by nobody but what they write down.

    python -m duologue.bench.chaos.clients --port 9001 --url http://… --ws-url ws://… --folder clients --users 8

`GET /stats` tells what is owed to them; `POST /do` makes them vanish, read slowly or send all again; `POST /talk` sets
the rate; `POST /finish` waits until nothing is owed, at most for so many seconds, and closes every connection in order.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, Literal

import aiohttp
import msgspec
import uvloop
from aiohttp import web

from duologue.bench.chaos.device import Device
from duologue.bench.chaos.person import Person
from duologue.client.tokens import ServerUnreachable

_TICK_SECONDS: Final = 0.2
_LOOK_SECONDS: Final = 0.1
_FINISH_LOOK_SECONDS: Final = 0.5
_VICTIMS: Final = 0.34
_LEAVE_SECONDS: Final = 5.0


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """How the crowd stands. `oldest_owed`: since when the outcome that is owed longest is owed; `now`: its clock."""

    now: float
    ready: bool
    accepted: int
    answered: int
    oldest_owed: float | None


class Doing(msgspec.Struct, frozen=True):
    """What some of the devices are to do, for how long."""

    fault: Literal["vanish", "slow_reader", "resend"]
    seconds: float = 0.0


class Talk(msgspec.Struct, frozen=True):
    """How many messages a second all together say."""

    rate: float


class Finish(msgspec.Struct, frozen=True):
    """How long to wait until nothing is owed."""

    seconds: float


class Finished(msgspec.Struct, frozen=True):
    """What is still owed, in words; empty if all is well."""

    waiting: list[str]


class Crowd:
    """All users, in one event loop."""

    def __init__(self, people: list[Person], seed: int) -> None:
        self._people = people
        self._chance = random.Random(f"crowd {seed}")  # noqa: S311  # behaviour, no secrets
        self._rate = 0.0
        self._finishing = False

    @property
    def _devices(self) -> list[Device]:
        return [device for person in self._people for device in person.devices]

    async def run(self) -> None:
        """Hold all connections, talk and look after what is due, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for device in self._devices:
                tasks.create_task(device.run())
            for person in self._people:
                tasks.create_task(_begin_history(person))
            tasks.create_task(self._talk())
            tasks.create_task(self._tick())

    async def _talk(self) -> None:
        while True:
            if self._rate <= 0:
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            await asyncio.sleep(self._chance.expovariate(self._rate))
            if not self._finishing:
                self._chance.choice(self._people).say()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            for device in self._devices:
                device.tick()

    def application(self) -> web.Application:
        """Return the endpoints of whoever directs it."""
        app = web.Application()
        app.router.add_get("/stats", self._stats)
        app.router.add_post("/do", self._do)
        app.router.add_post("/talk", self._set_rate)
        app.router.add_post("/finish", self._finish)
        return app

    async def _stats(self, _: web.Request) -> web.Response:
        owed = [since for person in self._people if (since := person.oldest_owed) is not None]
        stats = Stats(
            now=time.time(),
            ready=all(person.ready for person in self._people),
            accepted=sum(person.accepted for person in self._people),
            answered=sum(person.answered for person in self._people),
            oldest_owed=min(owed, default=None),
        )
        return _json(stats)

    async def _set_rate(self, request: web.Request) -> web.Response:
        self._rate = msgspec.json.decode(await request.read(), type=Talk).rate
        return web.json_response({})

    async def _do(self, request: web.Request) -> web.Response:
        doing = msgspec.json.decode(await request.read(), type=Doing)
        devices = self._devices
        for device in self._chance.sample(devices, max(1, int(len(devices) * _VICTIMS))):
            if doing.fault == "vanish":
                device.vanish(self._chance.uniform(0, doing.seconds))
            elif doing.fault == "slow_reader":
                device.read_slowly(doing.seconds)
            else:
                device.resend_all()
        return web.json_response({})

    async def _finish(self, request: web.Request) -> web.Response:
        seconds = msgspec.json.decode(await request.read(), type=Finish).seconds
        self._finishing = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (waiting := self._waiting()) and loop.time() < deadline:  # noqa: ASYNC110  # many events
            await asyncio.sleep(_FINISH_LOOK_SECONDS)
        for device in self._devices:
            device.leave()
        deadline = loop.time() + _LEAVE_SECONDS
        while any(device.attached for device in self._devices) and loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
        for device in self._devices:
            device.close()
        return _json(Finished(waiting))

    def _waiting(self) -> list[str]:
        return [words for person in self._people for words in person.waits_for()]


async def _begin_history(person: Person) -> None:
    """Before anything is said the history is empty: what is read later begins there."""
    while True:
        try:
            return await person.begin_history()
        except ServerUnreachable:
            await asyncio.sleep(_LOOK_SECONDS)


def _json(body: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


async def _serve(chosen: argparse.Namespace) -> None:
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        people = [
            Person(number, chosen.prefix, http, chosen.url, chosen.ws_url, chosen.folder, chosen.seed)
            for number in range(chosen.users)
        ]
        for person in people:
            stack.push_async_callback(person.aclose)
        crowd = Crowd(people, chosen.seed)
        runner = web.AppRunner(crowd.application(), access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", chosen.port).start()
        await crowd.run()


def main() -> None:
    """Run the crowd until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="Users who talk and write down what they are told.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--ws-url", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--prefix", default="chaos")
    parser.add_argument("--seed", type=int, default=0)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
