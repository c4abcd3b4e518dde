"""A whole Duologue as processes of its own, to be loaded, killed and started again: what both modes have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from duologue.bench.process import DuologueProcess, free_port


class System(Protocol):
    """A Duologue in either mode, as its clients and its operator see it."""

    @property
    def url(self) -> str:
        """Where clients find it."""
        ...

    @property
    def ws_url(self) -> str:
        """The same for sockets."""
        ...

    @property
    def jwt_secret(self) -> str:
        """What it signs tokens with."""
        ...

    def pids(self) -> Mapping[str, int]:
        """Return the process ids of its own processes, engines not among them, by name."""
        ...

    def server(self, server_id: str) -> DuologueProcess:
        """Return the process that calls itself so in its `connection` frames."""
        ...

    async def start(self) -> None:
        """Start what does not run and return once all is ready. Raises StartRefused."""
        ...

    async def kill(self) -> None:
        """End all its processes at once, as a crash would (SIGKILL), and wait for that. Engines stay."""
        ...

    async def terminate(self) -> int:
        """Ask all its processes to end (SIGTERM), wait for them, and return the highest exit code."""
        ...

    def output(self) -> str:
        """Return what its processes have printed so far."""
        ...


class EmbeddedSystem(DuologueProcess):
    """`duologue up` on a port and a data folder of its own."""

    def __init__(self, data_dir: Path, environment: Mapping[str, str], port: int | None = None) -> None:
        self.data_dir = data_dir
        log_file = data_dir.with_name(data_dir.name + ".log")
        super().__init__("up", log_file, {"DATA_DIR": str(data_dir), **environment}, port)

    @property
    def jwt_secret(self) -> str:
        """See `System.jwt_secret`."""
        return (self.data_dir / "jwt_secret").read_text("ascii").strip()

    def pids(self) -> Mapping[str, int]:
        """See `System.pids`."""
        return {"duologue": self.pid}

    def server(self, server_id: str) -> DuologueProcess:
        """Return the system itself, whatever it calls itself."""
        del server_id
        return self


@asynccontextmanager
async def embedded_system(data_dir: Path, environment: Mapping[str, str]) -> AsyncIterator[EmbeddedSystem]:
    """Start an embedded system, ready; it ends with the context.

    Args:
        data_dir: its data; kept afterwards.
        environment: settings beside port and data folder. Those of this process do not reach it.

    Raises:
        StartRefused: it does not start.
    """
    system = EmbeddedSystem(data_dir, environment, free_port())
    try:
        await system.start()
        yield system
    finally:
        await system.aclose()
