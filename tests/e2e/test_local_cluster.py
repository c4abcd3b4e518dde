"""The distributed mode on one machine as its users start it: every process real, the built-in model included."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.missing import needs_engine
from tests.support.socket_client import Client, connected

from duologue.cluster.local_cluster import LocalCluster
from duologue.cluster.local_env import LOCAL_ENV, LocalEnv
from duologue.cluster.nginx import nginx_program
from duologue.cluster.ports import free_ports
from duologue.config import Settings

_DEADLINE_SECONDS = 120.0


class _Checkout:
    """A folder like a clone of the repository, in which commands are run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        names = [name for name in LocalEnv.model_fields if name.endswith("_port")]
        ports = iter(free_ports(len(names)))
        self.ports = {name: next(ports) for name in names if name != "websocket_server_port"}
        self.ports["websocket_server_port"] = _two_free_ports()
        (root / LOCAL_ENV).parent.mkdir(parents=True)
        (root / LOCAL_ENV).write_text("".join(f"{name.upper()}={port}\n" for name, port in self.ports.items()))
        (root / ".env").write_text("APP_NAME=Two of us\n")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports['nginx_port']}"

    def run(self, *command: str) -> str:
        """Run a command of the cluster, which has to succeed; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "duologue.cluster", *command],
            cwd=self.root,
            env=os.environ | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def status(self) -> dict[str, tuple[int, bool]]:
        """Return each program's process id and whether it is ready."""
        lines = self.run("status").splitlines()[1:]
        rows = [re.match(r"(\S+)\s+\S+\s+(\d*)\s.*\s(yes|no)\s*$", line) for line in lines]
        return {row[1]: (int(row[2] or 0), row[3] == "yes") for row in rows if row}

    def cluster(self) -> LocalCluster:
        """Return the same cluster, to be asked often."""
        return LocalCluster(self.root, print, {})

    def processes(self) -> list[str]:
        """Return the processes that work anywhere in the folder, or are given something in it."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if str(self.root) in f"{(process / 'cwd').readlink()} {command}":
                    found.append(f"{process.name}: {command}")
            except OSError:  # it has ended meanwhile
                continue
        return found


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Checkout]:
    for name in [*Settings.model_fields, *LocalEnv.model_fields]:
        monkeypatch.delenv(name.upper(), raising=False)
    with needs_engine(from_apt_get=True):
        nginx_program()
    with tempfile.TemporaryDirectory(prefix="duologue-", ignore_cleanup_errors=True) as made:
        Path(made).chmod(0o711)  # PostgreSQL runs as nobody if this is root
        checkout = _Checkout(Path(made).resolve() / "a clone with blanks")
        try:
            yield checkout
        finally:
            if checkout.cluster().logs.exists():
                checkout.run("clean", "--force")


@pytest.mark.skipif(sys.platform != "linux", reason="it looks for processes in /proc")
@pytest.mark.timeout(400)
async def test_local_cluster_from_its_start_to_its_end(checkout: _Checkout) -> None:
    told = checkout.run("start")
    assert "Two of us is ready" in told
    assert f"http://{checkout.address}" in told
    await _converse(checkout.address)

    before = checkout.status()
    assert len(before) == 10
    assert all(ready for _, ready in before.values()), before

    victim = before["api-1"][0]
    os.kill(victim, signal.SIGKILL)
    _wait(lambda: _ready_again(checkout.cluster(), "api-1", victim))

    before = checkout.status()
    checkout.run("restart")
    after = checkout.status()
    assert all(ready for _, ready in after.values()), after
    assert {name for name in before if after[name] == before[name]} == {"postgres", "kafka", "valkey", "nginx"}

    checkout.run("stop")
    assert checkout.processes() == []
    assert not any(row.ready for row in checkout.cluster().status())
    assert (checkout.root / ".cluster").exists()
    checkout.run("clean", "--force")
    assert not (checkout.root / ".cluster").exists()


async def _converse(address: str) -> None:
    """Say something through nginx as a new user and see the answer come, in pieces and whole."""
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=30) as http:
        token = (await http.post("/token", params={"userid": f"u{time.monotonic_ns()}"})).json()["token"]
    async with connected(f"ws://{address}", token) as client:
        await client.send(type="message", id="1", content="Say hello.")
        await _until(client, "delta")
        assert (await _until(client, "response"))["content"]


async def _until(client: Client, kind: str) -> dict[str, Any]:
    async with asyncio.timeout(_DEADLINE_SECONDS):
        while (frame := json.loads(await client.socket.recv()))["type"] != kind:
            assert frame["type"] != "error", frame
    return dict(frame)


def _ready_again(cluster: LocalCluster, name: str, formerly: int) -> bool:
    [row] = [row for row in cluster.status() if row.name == name]
    return row.ready and row.pid != formerly


def _wait(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _two_free_ports() -> int:
    """Return the first of two neighbours."""
    while True:
        port = free_ports(1)[0]
        with suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            return port
