"""supervisord, which keeps the cluster's processes running on one machine: its configuration, and how to talk to it.

Each program is a shell script in the cluster's folder, so that any value and any path can be given to it: the file of
supervisord has several layers of quoting, and none for all. What stands in it are names, numbers and paths without
blanks, relative to the cluster's folder, which is supervisord's own.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from duologue.cluster.server_process import write_private
from duologue.domain.errors import StartRefused

_CONFIG: Final = "supervisord.conf"
_SCRIPTS: Final = "programs"
_LOGS: Final = "logs"
_OWN_LOG: Final = "supervisord"
_PID: Final = "supervisord.pid"
_USER: Final = "duologue"
_SOCKET_PATH_BYTES: Final = 90
"""Paths of Unix sockets end at 107 bytes on Linux and 103 on macOS, and supervisord appends its process id at first."""

_SHARED_FOLDER: Final = Path("/tmp")  # noqa: S108  # the folder made in it is checked
_NOT_RUNNING: Final = 70
_ALREADY_STARTED: Final = 60
"""Codes of supervisord's refusals."""

_CALL_SECONDS: Final = 10.0
_START_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.05
_STEADY_SECONDS: Final = 5
"""A process that ends earlier counts as one that does not start."""

_RETRIES: Final = 20
"""supervisord waits a second longer before each: three minutes and a half in all, then it gives up."""


class State(StrEnum):
    """What supervisord says of a process."""

    STOPPED = "STOPPED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    BACKOFF = "BACKOFF"
    STOPPING = "STOPPING"
    EXITED = "EXITED"
    FATAL = "FATAL"
    UNKNOWN = "UNKNOWN"

    @property
    def alive(self) -> bool:
        """There is a process."""
        return self in {State.STARTING, State.RUNNING, State.STOPPING}

    @property
    def kept(self) -> bool:
        """It runs, or supervisord is about to start it again."""
        return self in {State.STARTING, State.RUNNING, State.BACKOFF}


@dataclass(frozen=True)
class ProcessState:
    """One process as supervisord sees it; `pid` is 0 if there is none."""

    state: State
    pid: int
    uptime_seconds: int


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """A process to be kept running.

    Attributes:
        name: of letters, digits and dashes.
        command: runs in the foreground, logs to standard output and error, and ends by `stop_signal`.
        environment: beside what supervisord passes on.
        folder: where it starts.
        user: its user's id; None: supervisord's own.
        stop_seconds: after these it is killed.
        stop_turn: when it is its turn to stop, if supervisord itself is ended: the lowest first.
        death_signal: what the kernel sends it when supervisord is killed.
        before: a line of shell to run before each start, in the cluster's folder.
        read: what it reads from files of its own, or a part of that by which a change shows.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path
    user: int | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    stop_turn: int = 0
    death_signal: signal.Signals = signal.SIGKILL
    before: str = ""
    read: str = ""

    def script(self) -> str:
        """Return the shell script that becomes it."""
        lines = ["#!/bin/sh", "# Made when the cluster starts: changes are lost.", "umask 077"]
        lines += [self.before] if self.before else []
        lines += [f"cd {shlex.quote(str(self.folder))} || exit 1"]
        lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(self.environment.items())]
        lines += [f"exec {shlex.join([*_with_supervisor(self.death_signal), *self.command])}"]
        return "\n".join(lines) + "\n"


def _with_supervisor(death_signal: signal.Signals) -> list[str]:
    """Return what makes a command end with its supervisord, however that ends: Linux can, through util-linux."""
    program = shutil.which("setpriv") if sys.platform == "linux" else None
    if program is None:
        return []
    option = ["--pdeathsig", death_signal.name.removeprefix("SIG")]
    done = subprocess.run([program, *option, "true"], capture_output=True, check=False)
    return [program, *option] if done.returncode == 0 else []


def render_config(programs: Iterable[Supervised], socket_path: Path, password: str) -> str:
    """Return supervisord's configuration. Nothing starts by itself: the cluster starts in its own order."""
    user = ["user=root"] if os.geteuid() == 0 else []  # without it there is a warning about being root
    lines = [
        "[supervisord]",
        f"logfile={_LOGS}/{_OWN_LOG}.log",
        "logfile_maxbytes=5MB",
        "logfile_backups=2",
        f"pidfile={_PID}",
        "umask=077",
        *user,
        "",
        "[unix_http_server]",
        f"file={socket_path}",
        "chmod=0700",
        f"username={_USER}",
        f"password={password}",
        "",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
    ]
    for program in programs:
        lines += ["", *_section(program)]
    return "\n".join(lines) + "\n"


def _section(program: Supervised) -> Iterator[str]:
    yield f"[program:{program.name}]"
    yield f"command=/bin/sh {_script_path(program)}"
    # supervisord knows a program as changed by what stands here.
    said = f"{program.script()}{program.read}"
    yield f"environment=DUOLOGUE_PROGRAM={hashlib.sha256(said.encode()).hexdigest()[:16]}"
    yield from ([f"user={program.user}"] if program.user is not None else [])
    yield f"priority={900 - program.stop_turn}"
    yield "autostart=false"
    yield "autorestart=true"
    yield f"startsecs={_STEADY_SECONDS}"
    yield f"startretries={_RETRIES}"
    yield f"stopsignal={program.stop_signal.name.removeprefix('SIG')}"
    yield f"stopwaitsecs={round(program.stop_seconds)}"
    yield "killasgroup=true"
    yield "redirect_stderr=true"
    yield f"stdout_logfile={_LOGS}/{program.name}.log"
    yield "stdout_logfile_maxbytes=20MB"
    yield "stdout_logfile_backups=3"


def _script_path(program: Supervised) -> Path:
    return Path(_SCRIPTS, f"{program.name}.sh")


class Supervisor:
    """The supervisord of one cluster, running or not.

    Args:
        folder: the cluster's, absolute.
        password: which its socket asks for.
    """

    def __init__(self, folder: Path, password: str) -> None:
        self.folder = folder
        self._password = password

    @property
    def logs(self) -> Path:
        """The folder of the processes' logs: `<name>.log`, and supervisord's own."""
        return self.folder / _LOGS

    @property
    def running(self) -> bool:
        """Whether it answers."""
        try:
            self._call("getPID")
        except xmlrpc.client.Fault:  # it is about to end, and refuses all
            return True
        except OSError:
            return False
        return True

    def configure(self, programs: Sequence[Supervised]) -> None:
        """Write its configuration and the programs' scripts.

        Raises:
            StartRefused: there is no safe place for its socket.
        """
        self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        scripts = self.folder / _SCRIPTS
        scripts.mkdir(exist_ok=True)
        # Another user's script may lie there, readable for that user alone.
        scripts.chmod(0o711 if any(program.user is not None for program in programs) else 0o700)
        for program in programs:
            path = self.folder / _script_path(program)
            write_private(path, program.script())
            if program.user is not None:
                os.chown(path, program.user, -1)
        write_private(self.folder / _CONFIG, render_config(programs, self._socket(make=True), self._password))

    def start_daemon(self, environment: Mapping[str, str]) -> None:
        """Start supervisord itself, in the background, and return when it answers.

        Args:
            environment: what all its processes inherit.

        Raises:
            StartRefused: it does not start; the message has what it says.
        """
        # It goes into the background by itself, and its file descriptors are then /dev/null.
        done = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisord", "-c", _CONFIG],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise StartRefused(f"supervisord does not start: {(done.stdout + done.stderr).strip()}")
        deadline = time.monotonic() + _START_SECONDS
        while not self.running:
            if time.monotonic() > deadline:
                raise StartRefused(f"supervisord does not answer: see {self.logs / _OWN_LOG}.log")
            time.sleep(_POLL_SECONDS)

    def read_config(self) -> list[str]:
        """Let it read what `configure` has written. Programs that are new are added; those that are gone are stopped
        and removed. Return the names of those that run and have changed: `replace` applies that.

        Raises:
            StartRefused: it does not take the configuration.
        """
        added, changed, removed = self._answer("reloadConfig")[0]
        self.stop(removed)
        for name in removed:
            self._answer("removeProcessGroup", name)
        for name in added:
            self._answer("addProcessGroup", name)
        states = self.states()
        running = [name for name in changed if states[name].state.kept]
        for name in set(changed) - set(running):
            self.replace(name)
        return running

    def replace(self, name: str) -> None:
        """Stop a program and take over its new configuration; it is then to be started.

        Raises:
            StartRefused: it does not end.
        """
        self.stop([name])
        self._answer("removeProcessGroup", name)
        self._answer("addProcessGroup", name)

    def states(self) -> dict[str, ProcessState]:
        """Return each process's state by name; empty if supervisord does not run, or is about to end."""
        try:
            every: list[dict[str, Any]] = self._call("getAllProcessInfo")
        except (OSError, xmlrpc.client.Fault):
            return {}
        return {each["name"]: _state(each) for each in every}

    def start(self, name: str) -> None:
        """Start a process that does not run; whether it comes up is for the caller to see.

        Raises:
            StartRefused: its program cannot be run.
        """
        self._answer("startProcess", name, False, unless=_ALREADY_STARTED)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process that runs."""
        self._answer("signalProcess", name, number.name.removeprefix("SIG"))

    def stop(self, names: Iterable[str]) -> None:
        """Stop processes side by side and return when they have ended; one that does not end in its time is killed.

        Raises:
            StartRefused: supervisord does not answer any more.
        """
        chosen = set(names)
        for name, process in self.states().items():
            if name in chosen and process.state.kept:
                self._answer("stopProcess", name, False, unless=_NOT_RUNNING)
        while any(process.state.alive for name, process in self.states().items() if name in chosen):
            time.sleep(_POLL_SECONDS)

    def shutdown(self) -> None:
        """End supervisord, which stops what still runs, and return when it has ended."""
        if self.running:
            self._answer("shutdown")
        while self.running:
            time.sleep(_POLL_SECONDS)
        deadline = time.monotonic() + _CALL_SECONDS
        while (self.folder / _PID).exists() and time.monotonic() < deadline:  # it removes that last
            time.sleep(_POLL_SECONDS)
        if (private := self._socket().parent) != self.folder:
            shutil.rmtree(private, ignore_errors=True)

    def _answer(self, method: str, *arguments: Any, unless: int = 0) -> Any:
        """Call and return the answer; a refusal with the code `unless` means that there is nothing to do."""
        try:
            return self._call(method, *arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == unless:
                return None
            raise StartRefused(f"supervisord refuses {method}: {fault.faultString}") from fault
        except OSError as error:
            raise StartRefused(
                f"supervisord does not answer ({error}); its log is {self.logs / _OWN_LOG}.log"
            ) from error

    def _call(self, method: str, *arguments: Any) -> Any:
        """Raises OSError if it does not answer, `xmlrpc.client.Fault` if it refuses."""
        transport = _UnixTransport(self._socket(), self._password)
        try:
            with xmlrpc.client.ServerProxy("http://localhost", transport) as server:
                return getattr(server.supervisor, method)(*arguments)
        except xmlrpc.client.ProtocolError as error:
            raise ConnectionError(error.errmsg) from error
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error

    def _socket(self, *, make: bool = False) -> Path:
        """Return its socket's path: in the cluster's folder, or in a private one if that has too long a name, or one
        that would mean something in the configuration."""
        path = self.folder / "supervisor.sock"
        if len(bytes(path)) <= _SOCKET_PATH_BYTES and not set("%;#") & set(str(path)):
            return path
        # Not TMPDIR: whoever ends the cluster may have another one.
        private = _SHARED_FOLDER / f"duologue-{os.geteuid()}-{hashlib.sha256(bytes(self.folder)).hexdigest()[:12]}"
        if make:
            private.mkdir(mode=0o700, exist_ok=True)
            status = private.lstat()
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise StartRefused(f"{private} is not this user's own: remove it, or choose a shorter CLUSTER_DIR")
        return private / path.name


def _state(info: Mapping[str, Any]) -> ProcessState:
    state = State(info["statename"])
    return ProcessState(state, info["pid"] if state.alive else 0, info["now"] - info["start"] if state.alive else 0)


class _UnixTransport(xmlrpc.client.Transport):
    """XML-RPC by a Unix socket."""

    def __init__(self, path: Path, password: str) -> None:
        credentials = base64.b64encode(f"{_USER}:{password}".encode()).decode()
        super().__init__(headers=[("Authorization", f"Basic {credentials}")])
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = _UnixConnection(self._path)
        self._connection = host, connection  # which the base class closes
        return connection


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_CALL_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
