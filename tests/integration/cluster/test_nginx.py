"""nginx with the repository's configuration: who gets a request, what is passed on, what is logged."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.integration.cluster.upstream import TALE, Upstream, running_upstream
from tests.support.missing import needs_engine

from duologue.cluster.nginx import CONFIGURATION, NginxServer, nginx_program
from duologue.cluster.ports import free_ports
from duologue.cluster.server_process import EngineMissing
from duologue.domain.errors import StartRefused

DEADLINE_SECONDS = 20.0
TOKEN = "eyJhbGciOiJIUzI1NiJ9.c2VjcmV0.c2lnbmF0dXJl"


class Front:
    """A running nginx, two upstreams that are websocket-servers and apis, and a client."""

    def __init__(self, nginx: NginxServer, upstreams: list[Upstream], client: aiohttp.ClientSession) -> None:
        self.nginx = nginx
        self.upstreams = upstreams
        self._client = client

    async def get(self, path: str, method: str = "GET", **options: Any) -> aiohttp.ClientResponse:
        """Make a request and read its answer."""
        async with (
            asyncio.timeout(DEADLINE_SECONDS),
            self._client.request(method, self._url(path), **options) as answer,
        ):
            await answer.read()
            return answer

    async def told(self, path: str, **options: Any) -> dict[str, Any]:
        """Return what the upstream tells of a request."""
        answer = await self.get(path, **options)
        assert answer.status == 200
        told: dict[str, Any] = await answer.json()
        return told

    @asynccontextmanager
    async def socket(
        self, path: str = "/ws", **options: Any
    ) -> AsyncIterator[tuple[str, aiohttp.ClientWebSocketResponse]]:
        """Open a socket; yield the name of the server that has it, and the socket."""
        async with (
            asyncio.timeout(DEADLINE_SECONDS),
            self._client.ws_connect(self._url(path), max_msg_size=0, **options) as opened,
        ):
            yield await opened.receive_str(), opened

    @asynccontextmanager
    async def begun(self, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield an answer of which only the head has come."""
        async with asyncio.timeout(DEADLINE_SECONDS), self._client.get(self._url(path)) as answer:
            yield answer

    async def logged(self, path: str) -> dict[str, str]:
        """Wait for the access log's line about a path and return it."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                lines = (line for line in self.nginx.log.read_text().splitlines() if line.startswith("{"))
                for entry in map(json.loads, lines):
                    if entry["path"] == path:
                        return dict(entry)
                await asyncio.sleep(0.01)

    def _url(self, path: str) -> str:
        return path if path.startswith("http") else f"{self.nginx.url}{path}"


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not below pytest's own folders: their names have no spaces.
    with tempfile.TemporaryDirectory(prefix="duologue nginx ") as path:
        yield Path(path)


@pytest.fixture
async def front(folder: Path) -> AsyncIterator[Front]:
    async with opened(folder) as front:
        yield front


@asynccontextmanager
async def opened(folder: Path, *trusted_proxies: str, configuration: Path = CONFIGURATION) -> AsyncIterator[Front]:
    async with AsyncExitStack() as stack:
        ports = free_ports(5)
        upstreams = [await stack.enter_async_context(running_upstream(f"server-{port}", port)) for port in ports[:2]]
        addresses = [upstream.address for upstream in upstreams]
        nginx = NginxServer(
            folder,
            ports=ports[2:],
            websocket_servers=addresses,
            api_servers=addresses,
            trusted_proxies=trusted_proxies,
            configuration=configuration,
        )
        with needs_engine(from_apt_get=True):
            await asyncio.to_thread(nginx.start)
        stack.callback(nginx.kill)
        # A client that keeps no connection: each request meets nginx as a new one.
        client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        yield Front(nginx, upstreams, await stack.enter_async_context(client))


async def eventually_at(front: Front, name: str) -> None:
    """Open sockets until one is at the server of that name."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            async with AsyncExitStack() as held:
                for _ in front.upstreams:
                    at, _ = await held.enter_async_context(front.socket())
                    if at == name:
                        return
            await asyncio.sleep(0.05)


@contextmanager
def full_backlog(port: int) -> Iterator[None]:
    """Listen on a port and never accept: once the queue is full, who connects gets no answer."""
    with socket.create_server(("127.0.0.1", port), backlog=0), ExitStack() as held:
        for _ in range(4):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield


def failures_since(began: float) -> int:
    """Return how often a server that fails may have been tried since then: a failure is enough for three seconds."""
    return 1 + int((asyncio.get_running_loop().time() - began) / 3)


def _values(told: dict[str, Any], header: str) -> list[str]:
    return [value for name, value in told["headers"] if name.lower() == header]


# Who gets it


async def test_sockets_go_to_the_server_with_the_fewest(front: Front) -> None:
    one, other = front.upstreams
    async with AsyncExitStack() as lasting:
        for _ in range(6):
            await lasting.enter_async_context(front.socket())
        assert len(one.sockets) == 3
        for opened_socket in [*one.sockets]:
            await opened_socket.close()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:  # nginx counts them out when both sides have closed
                async with front.socket() as (first, _), front.socket() as (second, _):
                    if (first, second) == (one.name, one.name):
                        break
        assert len(other.sockets) == 3


@pytest.mark.parametrize("path", ["/ws", "/ws?userid=ann", "/ws/", "/ws/creative", "/ws/creative?userid=ann"])
async def test_socket_paths_go_to_the_websocket_servers(front: Front, path: str) -> None:
    async with front.socket(path) as (at, _):
        assert at in {upstream.name for upstream in front.upstreams}


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/openapi.json",
        "/health",
        "/ready",
        "/token?userid=ann",
        "/api/v1/characters",
        "/api/characters",
        "/wsx",
    ],
)
async def test_other_paths_go_to_the_api_as_they_are(front: Front, path: str) -> None:
    front.nginx.websocket_servers = ["127.0.0.1:1"]
    await asyncio.to_thread(front.nginx.reload)
    assert (await front.told(path))["path"] == path


async def test_every_port_serves_the_same(front: Front) -> None:
    for port in front.nginx.ports:
        assert (await front.told(f"http://127.0.0.1:{port}/health"))["path"] == "/health"


# What becomes of it


async def test_frames_pass_both_ways_as_they_come(front: Front) -> None:
    async with front.socket() as (_, opened_socket):
        for text in ("a", "b" * 300_000, "c"):
            await opened_socket.send_str(text)
            assert await opened_socket.receive_str() == text


async def test_answer_in_parts_is_not_held_back(front: Front) -> None:
    async with front.begun("/tale") as answer:
        for line in TALE:
            for upstream in front.upstreams:
                upstream.go_on.set()
            assert await answer.content.readline() == line


async def test_subprotocols_and_long_tokens_pass(front: Front) -> None:
    token = "t" * 6_000
    async with front.socket(f"/ws?token={token}", protocols=("bearer", token)) as (_, opened_socket):
        assert opened_socket.protocol == "bearer"


async def test_host_and_ids_of_a_request_pass(front: Front) -> None:
    ids = {"X-Request-ID": "r-1", "X-Correlation-ID": "c-1"}
    told = await front.told("/health", headers=ids)
    assert _values(told, "host") == [f"127.0.0.1:{front.nginx.ports[0]}"]
    assert (_values(told, "x-request-id"), _values(told, "x-correlation-id")) == (["r-1"], ["c-1"])
    assert (await front.logged("/health"))["correlation_id"] == "c-1"


async def test_connections_to_the_api_are_kept(front: Front) -> None:
    told = await front.told("/health")
    assert _values(told, "connection") == []  # in HTTP/1.1 that means to keep it


async def test_upgrade_to_anything_else_is_not_passed(front: Front) -> None:
    told = await front.told("/health", headers={"Upgrade": "h2c", "Connection": "Upgrade"})
    assert (_values(told, "upgrade"), _values(told, "connection")) == ([], [])


async def test_body_above_the_limit_is_refused_in_the_apis_form(front: Front) -> None:
    assert (await front.told("/login", method="POST", data=io.BytesIO(b"x" * 1_000_000)))["body_bytes"] == 1_000_000
    answer = await front.get("/login", method="POST", data=io.BytesIO(b"x" * 1_100_000))
    assert (answer.status, (await answer.json())["code"]) == (413, "content_too_large")


@pytest.mark.parametrize(
    "path", ["/metrics", "/metrics/", "//metrics", "/x/../metrics", "/%6detrics", "/api/v1/metrics"]
)
async def test_metrics_are_not_served(front: Front, path: str) -> None:
    with socket.create_connection(("127.0.0.1", front.nginx.ports[0])) as connection:  # a client would tidy the path up
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        connection.settimeout(DEADLINE_SECONDS)
        assert await asyncio.to_thread(connection.recv, 13) == b"HTTP/1.1 404 "
    assert not [request for upstream in front.upstreams for request in upstream.requests]


# A server that fails


async def test_server_that_died_is_left_at_once_and_found_again(front: Front) -> None:
    dead, living = front.upstreams
    await dead.stop()
    began = asyncio.get_running_loop().time()
    async with AsyncExitStack() as held:
        for number in range(8):
            at, opened_socket = await held.enter_async_context(front.socket(f"/ws/{number}"))
            assert at == living.name
            await opened_socket.close()
        tried = [(await front.logged(f"/ws/{number}"))["upstream"] for number in range(8)]
    assert sum(dead.address in upstream for upstream in tried) <= failures_since(began)
    assert (await front.told("/health"))["server"] == living.name
    await dead.start()
    await eventually_at(front, dead.name)


async def test_server_that_does_not_take_connections_is_left_after_a_second(front: Front) -> None:
    full, living = front.upstreams
    await full.stop()
    with full_backlog(full.port):
        began = asyncio.get_running_loop().time()
        async with front.socket() as (first, _), front.socket() as (second, _):
            assert (first, second) == (living.name, living.name)
        assert asyncio.get_running_loop().time() - began < 6.0  # a second, or two with the next try, and some room


def changed(folder: Path, old: str, new: str) -> Path:
    """Return a configuration that has `new` for `old`."""
    shutil.copytree(CONFIGURATION, folder)
    shared = folder / "duologue.conf"
    assert shared.read_text().count(old) == 1
    shared.write_text(shared.read_text().replace(old, new))
    return folder


async def test_api_that_hangs_costs_a_request_its_time_and_is_left(folder: Path) -> None:
    configuration = changed(folder / "configuration", "proxy_read_timeout 30s;", "proxy_read_timeout 1s;")
    async with opened(folder / "nginx", configuration=configuration) as front:
        hung, living = front.upstreams
        await hung.stop()
        began = asyncio.get_running_loop().time()
        waited = []
        with hanging(hung.port):
            for _ in range(6):
                before = asyncio.get_running_loop().time()
                assert (await front.told("/health"))["server"] == living.name
                waited.append(asyncio.get_running_loop().time() - before)
        assert sum(seconds > 0.9 for seconds in waited) <= failures_since(began)


@contextmanager
def hanging(port: int) -> Iterator[None]:
    """Listen on a port and let the kernel accept: who connects gets no answer, as from a process that is stopped."""
    with socket.create_server(("127.0.0.1", port), backlog=128):
        yield


async def test_server_that_hangs_costs_one_handshake_two_seconds_and_gets_none(front: Front) -> None:
    hung, living = front.upstreams
    await hung.stop()
    began = asyncio.get_running_loop().time()
    waited = []
    with hanging(hung.port):
        for _ in range(4):
            before = asyncio.get_running_loop().time()
            async with front.socket() as (at, _):
                assert at == living.name
            waited.append(asyncio.get_running_loop().time() - before)
        assert sum(seconds > 1.0 for seconds in waited) <= failures_since(began)
        assert max(waited) < 4.0
    await hung.start()
    await eventually_at(front, hung.name)


async def test_handshake_when_all_hang_is_unavailable(front: Front) -> None:
    with ExitStack() as held:
        for upstream in front.upstreams:
            await upstream.stop()
            held.enter_context(hanging(upstream.port))
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with front.socket():
                pass
    assert refused.value.status == 503


@pytest.mark.parametrize("sends", [False, True], ids=["silent client", "client that sends"])
async def test_socket_of_a_server_that_is_silent_is_ended_once_the_client_is_silent_too(
    folder: Path, sends: bool
) -> None:
    configuration = changed(folder / "configuration", "proxy_read_timeout 75s;", "proxy_read_timeout 1s;")
    loop = asyncio.get_running_loop()
    async with opened(folder / "nginx", configuration=configuration) as front, front.socket("/ws/mute") as (_, mute):
        began = loop.time()
        while sends and loop.time() < began + 2.0:
            await mute.send_str("is anybody there?")
            await asyncio.sleep(0.2)
        spoken = loop.time()
        assert not mute.closed
        assert (await mute.receive()).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE)
        assert 0.5 < loop.time() - spoken < 10.0


async def test_server_that_drains_gets_no_new_sockets_and_keeps_its_own(front: Front) -> None:
    draining, other = front.upstreams
    async with front.socket() as (first_at, first), front.socket() as (_, second):
        assert len(draining.handshakes) == 1
        draining.draining = True
        began = asyncio.get_running_loop().time()
        for _ in range(4):
            async with front.socket() as (at, _):
                assert at == other.name
        assert len(draining.handshakes) - 1 <= failures_since(began)
        kept = first if first_at == draining.name else second
        await kept.send_str("still here")
        assert await kept.receive_str() == "still here"


async def test_handshake_when_all_drain_gets_their_answer(front: Front) -> None:
    for upstream in front.upstreams:
        upstream.draining = True
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with front.socket():
            pass
    assert refused.value.status == 503


async def test_api_when_all_are_dead_is_unavailable_in_its_own_form(front: Front) -> None:
    for upstream in front.upstreams:
        await upstream.stop()
    answer = await front.get("/health")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert (await answer.json())["code"] == "service_unavailable"


async def test_post_that_was_sent_is_not_sent_again(front: Front) -> None:
    answer = await front.get("/break", method="POST", data=b"once")
    assert answer.status == 503
    assert [request for upstream in front.upstreams for request in upstream.requests] == ["POST /break"]


async def test_post_that_was_not_sent_goes_to_the_next_server(front: Front) -> None:
    await front.upstreams[0].stop()
    for _ in range(4):
        assert (await front.told("/login", method="POST", data=b"x"))["server"] == front.upstreams[1].name


async def test_get_that_was_broken_off_is_sent_to_the_next_server(front: Front) -> None:
    await front.get("/break")
    assert [upstream.requests for upstream in front.upstreams] == [["GET /break"], ["GET /break"]]


async def test_nginx_health_needs_no_server_and_is_not_logged(front: Front) -> None:
    for upstream in front.upstreams:
        await upstream.stop()
    answer = await front.get("/nginx-health")
    assert (answer.status, await answer.text()) == (200, "ok\n")
    await front.get("/health")
    await front.logged("/health")
    assert "/nginx-health" not in front.nginx.log.read_text()


async def test_server_that_hangs_does_not_hold_up_nginx_itself(front: Front) -> None:
    front.nginx.pause()
    assert not await asyncio.to_thread(front.nginx.answers)
    await asyncio.to_thread(front.nginx.restore)
    await front.told("/health")


# Who the client is

SPOOFED = {"X-Forwarded-For": "6.6.6.6, 203.0.113.7", "X-Forwarded-Proto": "https", "X-Real-IP": "6.6.6.6"}


async def test_forwarded_headers_of_a_stranger_are_overwritten(front: Front) -> None:
    told = await front.told("/health", headers=SPOOFED | {"Forwarded": "for=6.6.6.6"})
    assert _values(told, "x-forwarded-for") == ["127.0.0.1"]
    assert _values(told, "x-real-ip") == ["127.0.0.1"]
    assert _values(told, "x-forwarded-proto") == ["http"]
    assert _values(told, "forwarded") == []
    assert (await front.logged("/health"))["client"] == "127.0.0.1"


async def test_forwarded_headers_of_a_strangers_socket_are_overwritten(front: Front) -> None:
    async with front.socket(headers=SPOOFED):
        handshake = next(headers for upstream in front.upstreams for headers in upstream.handshakes)
    assert handshake.getall("X-Forwarded-For") == ["127.0.0.1"]
    assert handshake.getall("X-Forwarded-Proto") == ["http"]


@pytest.mark.parametrize(
    ("given", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("6.6.6.6, 203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, 10.1.2.3", "203.0.113.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("203.0.113.7, nonsense", "127.0.0.1"),
    ],
)
async def test_address_from_a_trusted_proxy_is_the_last_untrusted_one(folder: Path, given: str, client: str) -> None:
    async with opened(folder, "127.0.0.0/8", "10.0.0.0/8") as front:
        told = await front.told("/health", headers={"X-Forwarded-For": given})
        assert _values(told, "x-forwarded-for") == [client]
        assert (await front.logged("/health"))["client"] == client


@pytest.mark.parametrize(("given", "scheme"), [("https", "https"), ("http", "http"), ("gopher", "http")])
async def test_scheme_from_a_trusted_proxy_is_believed(folder: Path, given: str, scheme: str) -> None:
    async with opened(folder, "127.0.0.1") as front:
        headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": given}
        assert _values(await front.told("/", headers=headers), "x-forwarded-proto") == [scheme]
        async with front.socket(headers=headers):
            handshake = next(seen for upstream in front.upstreams for seen in upstream.handshakes)
        assert handshake.getall("X-Forwarded-Proto") == [scheme]


# What is logged


async def test_token_of_a_socket_is_in_no_log_whatever_fails(front: Front) -> None:
    query = f"?token={TOKEN}&userid=ann"
    async with front.socket(f"/ws{query}") as (_, opened_socket):
        await opened_socket.close()
    await front.upstreams[0].stop()
    for _ in range(2):
        async with front.socket(f"/ws/dead{query}"):
            pass
    await front.upstreams[1].stop()
    for path in (f"/ws/none{query}", f"/ws/none{query}"):
        with pytest.raises(aiohttp.WSServerHandshakeError):
            async with front.socket(path):
                pass
    too_long = await front.get(f"/ws/long{query}&more={'x' * 40_000}")
    assert too_long.status == 414
    await front.logged("/ws/none")
    assert TOKEN not in front.nginx.log.read_text()


# Its own process


async def test_reload_takes_new_servers_and_keeps_open_sockets(front: Front) -> None:
    (port,) = free_ports(1)
    async with running_upstream("third", port) as third, front.socket() as (_, opened_socket):
        front.nginx.websocket_servers = [third.address]
        await asyncio.to_thread(front.nginx.reload)
        async with front.socket() as (at, _):
            assert at == "third"
        await opened_socket.send_str("still here")
        assert await opened_socket.receive_str() == "still here"


async def test_reload_of_a_faulty_configuration_is_refused_and_changes_nothing(front: Front) -> None:
    front.nginx.websocket_servers = ["not an address"]
    with pytest.raises(StartRefused, match="refuses its configuration"):
        await asyncio.to_thread(front.nginx.reload)
    async with front.socket():
        pass


async def test_start_on_a_port_in_use_is_refused_with_nginxs_words(front: Front, folder: Path) -> None:
    second = NginxServer(
        folder / "second", ports=front.nginx.ports, websocket_servers=["127.0.0.1:1"], api_servers=["127.0.0.1:1"]
    )
    second.answers = lambda: False  # type: ignore[method-assign]  # the first one would answer for it
    with pytest.raises(StartRefused, match="Address already in use"):
        await asyncio.to_thread(second.start)


def test_nginx_that_is_not_there_is_named_with_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    nginx = NginxServer(folder, ports=[1], websocket_servers=["127.0.0.1:1"], api_servers=["127.0.0.1:1"])
    with pytest.raises(EngineMissing, match="apt-get install nginx"):
        nginx.prepare()


def test_configuration_for_containers_is_accepted_but_for_what_is_newer(folder: Path) -> None:
    """nginx 1.22 knows no `resolve`, and names and users of the containers are not known here; all else is tested."""
    with needs_engine(from_apt_get=True):
        program = nginx_program()
    shutil.copytree(CONFIGURATION, folder, dirs_exist_ok=True)
    unknown_here = {
        "user nginx;": "",
        " /tmp/": " ",  # all that it writes: below its folder then
        "resolver 127.0.0.11 valid=2s ipv6=off;": "",
        "server websocket-server:8080 resolve ": "server 127.0.0.1:1 ",
        "server api:8080 resolve ": "server 127.0.0.1:1 ",
    }
    text = {path: path.read_text() for path in folder.rglob("*.conf")}
    for name, known in unknown_here.items():
        assert any(name in each for each in text.values()), f"{name} is not there any more"
        text = {path: each.replace(name, known) for path, each in text.items()}
    for path, each in text.items():
        path.write_text(each)
    command = [program, "-t", "-e", "stderr", "-p", f"{folder}/", "-c", f"{folder}/nginx.conf"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr
