from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import parse_qs, urlparse

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from duologue.client import outbox
from duologue.client.connection import ClientConnection, ConnectionOptions, MessageRefused
from duologue.client.event_feed import ConnectionEnded
from duologue.client.events import Closed, Dropped, Event, Merged, Open, Reconnecting
from duologue.client.http_api import HttpApi, Row
from duologue.client.tokens import FixedToken, TokenRefused

Frame = dict[str, Any]


class ScriptedServer:
    """A server whose sockets the test plays: what comes in is kept, what goes out is told."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[dict[str, list[str]]] = []
        self.paths: list[str] = []
        self.tokens: list[str] = []
        self.received: asyncio.Queue[Frame] = asyncio.Queue()
        self.sockets: asyncio.Queue[ServerConnection] = asyncio.Queue()

    async def handle(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        address = urlparse(socket.request.path)
        self.paths.append(address.path)
        self.requests.append(parse_qs(address.query))
        self.tokens.append(socket.request.headers["Sec-WebSocket-Protocol"].removeprefix("bearer, "))
        await self.sockets.put(socket)
        try:
            async for text in socket:
                await self.received.put(json.loads(text))
        except ConnectionClosed:
            pass

    async def attach(self, **fields: Any) -> ServerConnection:
        """Take the next socket and send its `connection`."""
        socket = await asyncio.wait_for(self.sockets.get(), 5)
        frame = {"type": "connection", "conversation_id": "c1", "event_id": "e-0", "recovered": True, **fields}
        await send(socket, frame)
        return socket

    async def next_frame(self) -> Frame:
        return await asyncio.wait_for(self.received.get(), 5)


async def send(socket: ServerConnection, *frames: Frame) -> None:
    for frame in frames:
        await socket.send(json.dumps(frame))


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    async with serve(
        scripted.handle, "127.0.0.1", 0, subprotocols=[Subprotocol("bearer")], compression=None, close_timeout=1
    ) as running:
        scripted.url = f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}"
        yield scripted


class Tokens:
    """Counts renewals; the tokens are t1, t2, …"""

    def __init__(self) -> None:
        self.number = 1
        self.refuses = False

    async def token(self, *, renew: bool = False) -> str:
        if renew and self.refuses:
            raise TokenRefused("no more")
        self.number += renew
        return f"t{self.number}"


class History:
    """The history over HTTP, as the test plays it."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.asked: asyncio.Queue[str | None] = asyncio.Queue()

    async def changes(self, after: str | None) -> tuple[list[Row], str]:
        await self.asked.put(after)
        return self.rows, f"cursor-{self.asked.qsize()}"


@asynccontextmanager
async def connected(
    server: ScriptedServer,
    *,
    events: list[Event] | None = None,
    tokens: Tokens | None = None,
    history: History | None = None,
    **options: Any,
) -> AsyncIterator[ClientConnection]:
    client = ClientConnection(
        ConnectionOptions(server=server.url, user_id="ada", **options),
        tokens or FixedToken("t0"),
        history=cast("HttpApi | None", history),
        on_event=events.append if events is not None else None,
        draw=lambda: 0.0,
    )
    async with client:
        yield client


def is_open(client: ClientConnection) -> Callable[[], bool]:
    return lambda: isinstance(client.state, Open)


def closed(client: ClientConnection) -> Callable[[], bool]:
    return lambda: isinstance(client.state, Closed)


def ack(frame: Frame) -> Frame:
    return {"type": "ack", "id": frame["id"], "message_id": "m1", "conversation_id": "c1"}


def echo(frame: Frame) -> Frame:
    return {
        "type": "echo",
        "id": frame["id"],
        "message_id": "m1",
        "conversation_id": "c1",
        "content": frame["content"],
        "event_id": "e-1",
    }


def response(text: str) -> Frame:
    return {"type": "response", "message_id": "m1", "content": text, "attempt": 1, "event_id": "e-2"}


async def test_connection_offers_the_token_as_subprotocol_and_asks_as_told(server: ScriptedServer) -> None:
    async with connected(server, character="a b", conversation_id="new", last_event_id="e-9") as client:
        await server.attach()
        await client.until(is_open(client))
    assert server.paths == ["/ws/a%20b"]
    assert server.tokens == ["t0"]
    assert server.requests == [{"userid": ["ada"], "conversation_id": ["new"], "last_event_id": ["e-9"]}]


async def test_ask_returns_the_finished_exchange(server: ScriptedServer) -> None:
    async with connected(server) as client:
        asking = asyncio.create_task(client.ask("hello"))
        socket = await server.attach()
        frame = await server.next_frame()
        delta = {"type": "delta", "message_id": "m1", "attempt": 1, "seq": 1, "content": "H"}
        await send(socket, ack(frame), echo(frame), delta, response("Hi"))
        exchange = await asking
    assert (frame["type"], frame["content"]) == ("message", "hello")
    assert exchange.text == "Hi"
    assert client.unacknowledged == 0


async def test_ask_that_is_refused_raises_the_reason(server: ScriptedServer) -> None:
    async with connected(server) as client:
        asking = asyncio.create_task(client.ask("hello"))
        socket = await server.attach()
        frame = await server.next_frame()
        error = {"type": "error", "code": "content_too_long", "message": "Too long.", "id": frame["id"]}
        await send(socket, {**error, "temporary": False})
        with pytest.raises(MessageRefused, match=r"Too long\."):
            await asking


async def test_unacknowledged_frame_is_sent_again_as_it_was_on_the_next_socket(server: ScriptedServer) -> None:
    async with connected(server) as client:
        client.send("hello", metadata={"k": 1})
        socket = await server.attach(event_id="e-7", conversation_id="c9")
        first = await server.next_frame()
        await socket.close(1012)
        await server.attach()
        assert await server.next_frame() == first
    assert server.requests[1]["last_event_id"] == ["e-7"]
    assert server.requests[1]["conversation_id"] == ["c9"]


async def test_unacknowledged_frame_is_sent_again_after_a_time(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "RESEND_SECONDS", 0.05)
    async with connected(server) as client:
        client.send("hello")
        socket = await server.attach()
        first = await server.next_frame()
        assert await server.next_frame() == first
        await send(socket, ack(first))
        await client.until(lambda: client.unacknowledged == 0)


async def test_temporary_refusal_is_sent_again_after_the_time_it_names(server: ScriptedServer) -> None:
    async with connected(server) as client:
        client.send("hello")
        socket = await server.attach()
        first = await server.next_frame()
        error = {"type": "error", "code": "rate_limited", "message": "", "id": first["id"], "temporary": True}
        await send(socket, {**error, "retry_after": 0.05})
        assert await server.next_frame() == first


async def test_new_conversation_is_not_made_again_at_a_reconnect(server: ScriptedServer) -> None:
    async with connected(server, conversation_id="new") as client:
        socket = await server.attach(conversation_id="c5")
        await client.until(is_open(client))
        await socket.close(1001)
        await server.attach(conversation_id="c5")
    assert [request["conversation_id"] for request in server.requests] == [["new"], ["c5"]]


async def test_stop_and_regenerate_name_what_the_view_shows(server: ScriptedServer) -> None:
    async with connected(server) as client:
        client.send("hello")
        socket = await server.attach()
        said = await server.next_frame()
        await send(socket, ack(said), echo(said))
        await client.until(lambda: "m1" in client.view.exchanges)
        stop_id = client.stop("m1")
        stop = await server.next_frame()
        await send(socket, ack(stop), response("Hi") | {"attempt": 2, "finish_reason": "stopped"})
        await client.until(lambda: client.view.exchanges["m1"].ended)
        regenerate_id = client.regenerate("m1")
        regenerate = await server.next_frame()
        await send(socket, {"type": "error", "code": "not_last", "message": "no", "id": regenerate_id})
        await client.until(lambda: regenerate_id in client.refusals)
    named = {"message_id": "m1", "conversation_id": "c1"}
    assert stop == {"type": "stop", "id": stop_id, **named}
    assert regenerate == {"type": "regenerate", "id": regenerate_id, "attempt": 2, **named}
    assert client.unacknowledged == 0
    assert client.view.exchanges["m1"].finish_reason == "stopped"
    assert client.view.exchanges["m1"].ended


async def test_stop_that_was_not_acknowledged_when_its_reply_ended_is_not_sent_again(server: ScriptedServer) -> None:
    async with connected(server) as client:
        client.send("hello")
        socket = await server.attach()
        said = await server.next_frame()
        await send(socket, ack(said), echo(said))
        await client.until(lambda: "m1" in client.view.exchanges)
        client.stop("m1")
        assert (await server.next_frame())["type"] == "stop"
        await send(socket, response("Hi"))
        await client.until(lambda: client.view.exchanges["m1"].ended)
        assert client.unacknowledged == 0


async def test_stop_of_what_the_view_does_not_know_names_the_message_only(server: ScriptedServer) -> None:
    async with connected(server) as client:
        await server.attach()
        client.stop("m9")
        client.regenerate("m9", attempt=3)
        assert set(await server.next_frame()) == {"type", "id", "message_id"}
        assert (await server.next_frame())["attempt"] == 3


async def test_typing_is_sent_where_it_is_offered_and_heard_of_others(server: ScriptedServer) -> None:
    async with connected(server) as client:
        client.typing(active=True)  # there is nobody to tell
        socket = await server.attach(features=["typing"])
        await client.until(is_open(client))
        client.typing(active=True)
        client.typing(active=True)
        typing = await server.next_frame()
        client.typing(active=False, conversation_id="c1")
        assert [typing, await server.next_frame()] == [
            {"type": "typing", "conversation_id": "c1", "active": active} for active in (True, False)
        ]
        assert not client.is_typing_elsewhere("c1")
        await send(socket, {"type": "typing", "role": "user", "conversation_id": "c1", "active": True})
        await client.until(lambda: client.is_typing_elsewhere("c1"))


async def test_typing_is_not_sent_to_a_server_that_does_not_offer_it(server: ScriptedServer) -> None:
    async with connected(server) as client:
        await server.attach(features=["stop"])
        await client.until(is_open(client))
        client.typing(active=True)
        client.send("hello")
        assert (await server.next_frame())["type"] == "message"


async def test_gap_asks_for_a_resume_behind_the_last_event(server: ScriptedServer) -> None:
    async with connected(server) as client:
        socket = await server.attach()
        delta = {"type": "delta", "message_id": "m1", "attempt": 1, "content": "x"}
        await send(socket, {**delta, "seq": 1}, {**delta, "seq": 3}, {**delta, "seq": 4})
        assert await server.next_frame() == {"type": "resume", "last_event_id": "e-0"}
        snapshot = {"type": "snapshot", "message_id": "m1", "attempt": 1, "seq": 4, "content": "xyxx"}
        await send(socket, {"type": "connection", "event_id": "e-0", "recovered": True}, snapshot)
        await client.until(lambda: client.view.exchanges["m1"].text == "xyxx")
    assert server.received.empty()


async def test_refused_connection_ends_with_what_the_server_said(server: ScriptedServer) -> None:
    async with connected(server, character="nobody") as client:
        socket = await asyncio.wait_for(server.sockets.get(), 5)
        await send(socket, {"type": "error", "code": "character_not_found", "message": "There is no such character."})
        await socket.close(1008)
        await client.until(closed(client), timeout_seconds=5)
        assert client.state == Closed(1008, "There is no such character.")


@pytest.mark.parametrize("code", [4403, 4429])
async def test_final_close_code_ends_the_connection(server: ScriptedServer, code: int) -> None:
    async with connected(server) as client:
        socket = await server.attach()
        await client.until(is_open(client))
        await socket.close(code)
        with pytest.raises(ConnectionEnded):
            await client.until(lambda: False, timeout_seconds=5)
        assert isinstance(client.state, Closed)
        assert client.state.code == code
    assert len(server.paths) == 1


async def test_invalid_token_is_renewed_once(server: ScriptedServer) -> None:
    async with connected(server, tokens=Tokens()) as client:
        for _ in range(2):
            socket = await server.attach()
            await socket.close(4401)
        await client.until(closed(client), timeout_seconds=5)
    assert server.tokens == ["t1", "t2"]


async def test_token_that_cannot_be_renewed_ends_the_connection_with_the_reason(server: ScriptedServer) -> None:
    tokens = Tokens()
    tokens.refuses = True
    async with connected(server, tokens=tokens) as client:
        socket = await server.attach()
        await socket.close(4401)
        await client.until(closed(client), timeout_seconds=5)
        assert client.state == Closed(4401, "no more")


async def test_frame_too_large_is_given_up_and_the_rest_is_sent_again(server: ScriptedServer) -> None:
    events: list[Event] = []
    async with connected(server, events=events) as client:
        small = client.send("small")
        large = client.send("x" * 3000)
        socket = await server.attach(limits={"frame_bytes": 1000})
        assert [(await server.next_frame())["id"] for _ in range(2)] == [small, large]
        await socket.close(1009)
        await server.attach()
        assert (await server.next_frame())["id"] == small
    assert Dropped([large]) in events


async def test_server_that_is_not_there_is_tried_again(unused_tcp_port_url: str) -> None:
    events: list[Event] = []
    client = ClientConnection(
        ConnectionOptions(server=unused_tcp_port_url, user_id="ada"), FixedToken("t"), on_event=events.append
    )
    async with client:
        await client.until(lambda: any(isinstance(one, Reconnecting) for one in events))
    reconnecting = next(one for one in events if isinstance(one, Reconnecting))
    assert unused_tcp_port_url in reconnecting.why
    assert isinstance(events[-1], Closed)


@pytest.fixture
async def unused_tcp_port_url() -> str:
    """Address of a port that nobody listens on any more."""
    listening = await asyncio.start_server(lambda _, __: None, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    listening.close()
    await listening.wait_closed()
    return f"http://127.0.0.1:{port}"


async def test_replay_that_is_not_whole_is_completed_from_the_history(server: ScriptedServer) -> None:
    history = History()
    events: list[Event] = []
    async with connected(server, events=events, history=history) as client:
        socket = await server.attach()
        await client.until(lambda: any(isinstance(one, Merged) for one in events))
        history.rows = [
            {"role": "user", "id": "m1", "content": "hello", "conversation_id": "c1", "client_id": "k"},
            {"role": "assistant", "reply_to": "m1", "content": "Hi", "state": "complete", "attempt": 1},
        ]
        await socket.close(1013)
        await server.attach(recovered=False, event_id="f-1")
        await client.until(lambda: "m1" in client.view.exchanges)
        assert client.view.exchanges["m1"].text == "Hi"
    assert [history.asked.get_nowait() for _ in range(2)] == [None, "cursor-1"]


async def test_replay_that_is_not_whole_on_an_open_socket_is_completed_from_the_history(server: ScriptedServer) -> None:
    history = History()
    async with connected(server, history=history) as client:
        socket = await server.attach()
        await history.asked.get()
        history.rows = [{"role": "assistant", "reply_to": "m1", "content": "Hi", "state": "complete", "attempt": 1}]
        await send(socket, {"type": "connection", "event_id": "f-0", "recovered": False})
        await client.until(lambda: "m1" in client.view.exchanges)
        assert client.view.exchanges["m1"].text == "Hi"


async def test_events_iterate_until_the_connection_is_closed(server: ScriptedServer) -> None:
    client = ClientConnection(ConnectionOptions(server=server.url, user_id="ada"), FixedToken("t"))
    async with client.events() as events:
        async with client:
            await server.attach()
            await client.until(is_open(client))
        kinds = [type(event).__name__ async for event in events]
    assert kinds[0:2] == ["Connecting", "Open"]
    assert kinds[-1] == "Closed"


async def test_frames_that_are_none_are_ignored(server: ScriptedServer) -> None:
    async with connected(server) as client:
        socket = await server.attach()
        for text in ("not json", "[1]", '"x"', '{"type": "from the future"}'):
            await socket.send(text)
        await send(socket, response("Hi"))
        await client.until(lambda: "m1" in client.view.exchanges)


async def test_wait_that_takes_too_long_says_so(server: ScriptedServer) -> None:
    async with connected(server) as client:
        with pytest.raises(ConnectionEnded, match="within"):
            await client.until(lambda: False, timeout_seconds=0.01)
