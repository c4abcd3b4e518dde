"""The scripted model as a process of its own: OpenAI's streaming endpoint, which writes down all it is asked.

    python -m duologue.bench.chaos.model --port 9000 --log model.jsonl --seed 7

Every request is a line in the log before its first byte is answered, and a line when it ends. The file outlives the
process, which may be killed and started again on it; numbers go on where the file ends. `POST /behave` makes it fail
for a while: `{"fault": "cut", "seconds": 3, "share": 0.5}`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import time
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import uvloop
from aiohttp import web

from duologue.bench.chaos.history import read_asked
from duologue.bench.chaos.story import marker_of, story

Fault = Literal["slow", "cut", "429", "500", "silence"]
_How = Literal["whole", "refused", "cut", "silent", "abandoned"]

_LEAST_WORDS: Final = 4
_MOST_WORDS: Final = 40
_WORD_SECONDS: Final = 0.03
_SLOW_WORD_SECONDS: Final = 0.4
_RETRY_AFTER_SECONDS: Final = 1
_SILENCE_SECONDS: Final = 60.0


class Behaviour(msgspec.Struct, frozen=True):
    """What goes wrong, for how long from now, and with which share of the requests."""

    fault: Fault
    seconds: float
    share: float


class _Turn(msgspec.Struct):
    role: str = ""
    content: Any = ""


class _Request(msgspec.Struct):
    messages: list[_Turn]


class Journal:
    """The log of what was asked. Each line is one write, so that a kill cuts the last one at most."""

    def __init__(self, path: Path) -> None:
        known = read_asked(path)
        self._next = 1 + max((asked.number for asked in known), default=0)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(self._file, b"\n")  # ends a line that was cut

    def begin(self, marker: str, words: int) -> int:
        """Note a request; returns its number."""
        number, self._next = self._next, self._next + 1
        self._write({"number": number, "at": time.time(), "marker": marker, "words": words})
        return number

    def end(self, number: int, how: _How) -> None:
        """Note how an answer ended."""
        self._write({"number": number, "at": time.time(), "how": how})

    def close(self) -> None:
        os.close(self._file)

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._file, msgspec.json.encode(line) + b"\n")


class ScriptedModel:
    """The server's state: its journal, its chance, and what goes wrong until when."""

    def __init__(self, journal: Journal, seed: int) -> None:
        self._journal = journal
        self._chance = random.Random(f"model {seed}")  # noqa: S311  # lengths of answers, no secrets
        self._faults: dict[Fault, tuple[float, float]] = {}

    def application(self) -> web.Application:
        """Return the endpoints."""
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/behave", self._behave)
        app.router.add_get("/health", self._health)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _behave(self, request: web.Request) -> web.Response:
        behaviour = msgspec.json.decode(await request.read(), type=Behaviour)
        until = asyncio.get_running_loop().time() + behaviour.seconds
        self._faults[behaviour.fault] = (until, behaviour.share)
        return web.json_response({})

    def _draw_fault(self) -> Fault | None:
        now = asyncio.get_running_loop().time()
        for fault, (until, share) in self._faults.items():
            if now < until and self._chance.random() < share:
                return fault
        return None

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        asked = msgspec.json.decode(await request.read(), type=_Request)
        said = next((turn.content for turn in reversed(asked.messages) if turn.role == "user"), "")
        words = self._chance.randint(_LEAST_WORDS, _MOST_WORDS)
        fault = self._draw_fault()
        marker = marker_of(said)
        number = self._journal.begin(marker, words)
        if fault in ("429", "500"):
            self._journal.end(number, "refused")
            return _refusal(int(fault))
        try:
            await self._stream(request, number, story(marker, number, words), fault)
        except ConnectionError:  # the client is gone; if aiohttp notices first, it cancels this
            pass
        finally:
            self._journal.end(number, "abandoned")  # unless it had another end before
        return web.Response()  # for aiohttp; the answer has been written

    async def _stream(self, request: web.Request, number: int, pieces: list[str], fault: Fault | None) -> None:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        gap = _SLOW_WORD_SECONDS if fault == "slow" else _WORD_SECONDS
        broken_at = self._chance.randrange(len(pieces)) if fault in ("cut", "silence") else len(pieces)
        for piece in pieces[:broken_at]:
            await response.write(_event({"content": piece}))
            await asyncio.sleep(gap)
        if fault == "cut":
            self._journal.end(number, "cut")
            if request.transport is not None:
                request.transport.abort()
        elif fault == "silence":
            self._journal.end(number, "silent")
            await asyncio.sleep(_SILENCE_SECONDS)
        else:
            # Noted before the end is written: whoever has read the end may be gone before this goes on.
            self._journal.end(number, "whole")
            await response.write(_event({}, "stop") + b"data: [DONE]\n\n")
            await response.write_eof()


def _event(delta: dict[str, str], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return b"data: " + msgspec.json.encode({"id": "chaos", "choices": [choice]}) + b"\n\n"


def _refusal(status: int) -> web.Response:
    headers = {"Retry-After": str(_RETRY_AFTER_SECONDS)} if status == 429 else {}
    return web.json_response({"error": {"message": "not now"}}, status=status, headers=headers)


async def _serve(port: int, log: Path, seed: int) -> None:
    journal = Journal(log)
    runner = web.AppRunner(ScriptedModel(journal, seed).application(), access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
        journal.close()


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="A model that writes down what it is asked.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(chosen.port, chosen.log, chosen.seed))


if __name__ == "__main__":
    main()
