"""The cluster on one machine: starts it in its order, stops it with its drains, and tells how it is."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from duologue.cluster import kafka
from duologue.cluster.local_env import LOCAL_ENV, LocalEnv, read_local_env
from duologue.cluster.local_secrets import SECRETS, LocalSecrets, local_secrets
from duologue.cluster.nginx import REMEMBERS_SECONDS
from duologue.cluster.port_holders import holder_of
from duologue.cluster.postgres_home import remove_postgres_home
from duologue.cluster.programs import (
    DATABASE,
    START_ORDER,
    STOP_ORDER,
    Group,
    Plan,
    Program,
    Site,
    kind_of,
    plan,
)
from duologue.cluster.supervisor import Supervisor
from duologue.config import Settings, load_settings
from duologue.domain.errors import StartRefused

_POLL_SECONDS: Final = 0.1
_PATIENCE_SECONDS: Final = 10.0
"""So often it says for what it waits."""

_ENDING_SECONDS: Final = 3.0
"""Processes whose supervisord was killed may take so long to end."""

_LOCK: Final = "lock"
_LAST_LINES: Final = 15


@dataclass(frozen=True)
class Row:
    """One line of `status`."""

    name: str
    state: str
    pid: int
    uptime_seconds: int
    ports: Sequence[int]
    ready: bool


class LocalCluster:
    """The cluster whose repository is in `root`.

    Args:
        root: has `deploy/local.env`, and `.env` if there is one.
        say: takes each line for people.
        environment: wins over both files.

    Raises:
        StartRefused: one of the files is not valid.
    """

    def __init__(self, root: Path, say: Callable[[str], None], environment: Mapping[str, str] = os.environ) -> None:
        self.root = root
        self.env: LocalEnv = read_local_env(root)
        self.folder = (root / self.env.cluster_dir).absolute()
        self.settings: Settings = load_settings(root / ".env")
        self._say = say
        self._environment = environment

    def start(self, *groups: Group) -> None:
        """Start what of these groups does not run, and restart what has changed; return when all of it is ready.

        Raises:
            StartRefused: something is missing, or does not come up; the message says what, and the end of its log.
        """
        began = time.monotonic()
        with self._held():
            everything = self._plan()
            chosen = everything.of(*groups)
            if Group.DEPENDENCIES not in groups:
                self._require_dependencies(everything)
            self._check_ports(chosen)
            self._fetch(chosen)
            self._say(f"Starting the cluster of {self.folder}")
            changed = self._configure(everything)
            self._replace(program for program in chosen if program.name in changed)
            for turn in START_ORDER:
                self._bring_up([program for program in chosen if kind_of(program.name) in turn])
                if turn == START_ORDER[0]:
                    self._prepare_database(everything, migrate=Group.BACKEND in groups)
            self._renew(chosen)
        if Group.BACKEND in groups:
            self._tell(time.monotonic() - began)

    def stop(self) -> None:
        """Stop all of it in its order: the roles finish what they have accepted, the engines stop last."""
        if not self._exists or not self._supervisor.running:
            self._say("The cluster does not run.")
            return
        with self._held():
            for turn in STOP_ORDER:
                names = [name for name, each in self._supervisor.states().items() if each.state.kept]
                if ending := sorted(name for name in names if kind_of(name) in turn):
                    self._say(f"Stopping {', '.join(ending)} …")
                    self._supervisor.stop(ending)
            self._supervisor.shutdown()
        self._say("The cluster is stopped. Its data is kept; `make start-all` goes on with it.")

    def restart(self) -> None:
        """Restart the roles one after the other, each ready before the next stops. The engines run on.

        The schema is brought up to date first: migrations leave what the running version needs.

        Raises:
            StartRefused: the cluster does not run, or a role does not come back.
        """
        if not self._exists or not self._supervisor.running:
            raise StartRefused("the cluster does not run: `make start-all` starts it")
        with self._held():
            everything = self._plan()
            self._require_dependencies(everything)
            changed = self._configure(everything)
            self._prepare_database(everything, migrate=True)
            backend = everything.of(Group.BACKEND)
            self._replace(program for program in backend if program.name in changed or program.name != "nginx")
            self._renew(backend)
        self._say("The roles are restarted.")

    def status(self) -> list[Row]:
        """Return how each program is; none runs if the cluster does not."""
        if not self._exists:
            return []
        states = self._supervisor.states()
        rows = []
        for program in self._plan().programs:
            process = states.get(program.name)
            rows.append(
                Row(
                    name=program.name,
                    state=process.state.lower() if process else "stopped",
                    pid=process.pid if process else 0,
                    uptime_seconds=process.uptime_seconds if process else 0,
                    ports=program.ports,
                    ready=process is not None and process.pid != 0 and program.answers(),
                )
            )
        return rows

    def clean(self) -> None:
        """Stop it and remove all of its data.

        Raises:
            StartRefused: its folder holds something else.
        """
        self._check_folder()
        self.stop()
        remove_postgres_home(self.folder)
        if self.folder.exists():
            shutil.rmtree(self.folder)
            self._say(f"{self.folder} is removed.")

    @property
    def logs(self) -> Path:
        """The folder of the programs' logs, `<name>.log`."""
        return self._supervisor.logs if self._exists else self.folder / "logs"

    @property
    def _exists(self) -> bool:
        """It was started once."""
        return (self.folder / SECRETS).is_file()

    @cached_property
    def _secrets(self) -> LocalSecrets:
        return local_secrets(self.folder, self._environment)

    @cached_property
    def _supervisor(self) -> Supervisor:
        return Supervisor(self.folder, self._secrets.supervisor_password)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the cluster's folder, made if it is missing: one command at a time works on it."""
        self._check_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Root's PostgreSQL runs as nobody, who has to pass through.
        self.folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        with (self.folder / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StartRefused(f"another command works on the cluster in {self.folder}: wait for its end") from None
            yield

    def _check_folder(self) -> None:
        """Raises StartRefused if the folder is not a cluster's: `clean` would remove what is in it."""
        if self.folder.is_dir() and not self._exists and {path.name for path in self.folder.iterdir()} - {_LOCK}:
            raise StartRefused(
                f"{self.folder} holds something that is not a cluster's: set CLUSTER_DIR to another folder"
            )

    def _plan(self) -> Plan:
        site = Site(
            root=self.root,
            folder=self.folder,
            env=self.env,
            settings=self.settings,
            secrets=self._secrets,
            environment=self._environment,
        )
        return plan(site)

    def _fetch(self, programs: Iterable[Program]) -> None:
        """Get what does not come with Python packages."""
        if "kafka" in {program.name for program in programs} and not kafka.jars().is_dir():
            self._say(f"Getting Kafka {kafka.VERSION} by Maven, once for this user …")
            kafka.fetch_jars()

    def _require_dependencies(self, everything: Plan) -> None:
        away = [program.name for program in everything.of(Group.DEPENDENCIES) if not self._runs(program.name)]
        if away:
            raise StartRefused(f"{', '.join(away)} not running: `make start-dependencies` (or `start-all`) comes first")

    def _runs(self, name: str) -> bool:
        process = self._supervisor.states().get(name)
        return process is not None and process.state.kept

    def _check_ports(self, programs: Iterable[Program]) -> None:
        """Look at the ports of all that is to be started before anything is. Raises StartRefused."""
        states = self._supervisor.states()
        absent = [each for each in programs if each.name not in states or not states[each.name].state.alive]
        deadline = time.monotonic() + _ENDING_SECONDS
        while taken := [(each, port) for each in absent for port in each.ports if not _is_free(each.host, port)]:
            if time.monotonic() > deadline:
                lines = [f"port {port} ({each.name}) is taken by {holder_of(port)}" for each, port in taken]
                raise StartRefused("\n".join([*lines, f"Stop what holds it, or choose another port in {LOCAL_ENV}."]))
            self._end_orphans(absent)
            time.sleep(_POLL_SECONDS)

    def _end_orphans(self, programs: Iterable[Program]) -> None:
        """End what programs that were killed together with supervisord have left behind."""
        for program in programs:
            if program.supervised.before:
                subprocess.run(["/bin/sh", "-c", program.supervised.before], cwd=self.folder, check=False)

    def _configure(self, everything: Plan) -> list[str]:
        """Give supervisord the configuration, starting it if need be; return which running programs have changed."""
        self._supervisor.configure([program.supervised for program in everything.programs])
        if self._supervisor.running:
            return self._supervisor.read_config()
        own = {*Settings.model_fields, *LocalEnv.model_fields}
        # The roles' settings come with each role's own script: here they would outlive a change.
        passed_on = {name: value for name, value in self._environment.items() if name.lower() not in own}
        self._supervisor.start_daemon(passed_on)
        return []

    def _replace(self, programs: Iterable[Program]) -> None:
        for program in programs:
            self._say(f"  {program.name:<20} restarting")
            self._supervisor.replace(program.name)
            self._bring_up([program])
            if program.name.startswith("websocket-server"):  # else nginx could know of no other when the next one stops
                time.sleep(REMEMBERS_SECONDS)

    def _bring_up(self, programs: Sequence[Program]) -> None:
        """Start what of these does not run and wait until all of them are ready."""
        began = time.monotonic()
        states = self._supervisor.states()
        sizes = {program.name: _size(self._log(program)) for program in programs}
        for program in programs:
            if not states[program.name].state.alive:
                self._supervisor.stop([program.name])  # which waits to try again
                program.prepare()
                self._supervisor.start(program.name)
            else:
                self._say(f"  {program.name:<20} runs")
        waiting = [program for program in programs if not states[program.name].state.alive or not program.answers()]
        patience = began + _PATIENCE_SECONDS
        started = self._supervisor.states()
        while waiting:
            for program in list(waiting):
                if program.answers():
                    waiting.remove(program)
                    self._say(
                        f"  {program.name:<20} ready    {_addresses(program):<24} {time.monotonic() - began:5.1f} s"
                    )
                else:
                    waited_seconds = time.monotonic() - began
                    self._check_alive(program, started[program.name].pid, waited_seconds, sizes[program.name])
            if waiting and time.monotonic() > patience:
                patience += _PATIENCE_SECONDS
                self._say(f"  waiting for {', '.join(program.name for program in waiting)} …")
            time.sleep(_POLL_SECONDS if waiting else 0)

    def _renew(self, programs: Iterable[Program]) -> None:
        for program in programs:
            if program.renew():
                self._supervisor.signal(program.name, signal.SIGHUP)
                self._say(f"  {program.name:<20} has taken over what changed")

    def _check_alive(self, program: Program, pid: int, waited_seconds: float, log_start: int) -> None:
        """Raise StartRefused if it will not come up: its first process has ended, or its time is over."""
        goes_on = self._supervisor.states()[program.name].pid == pid != 0
        if goes_on and waited_seconds < program.start_seconds:
            return
        problem = f"is not ready after {program.start_seconds:.0f} s" if goes_on else "has ended"
        log = self._log(program)
        raise StartRefused(
            f"{program.name} does not come up: it {problem}. The end of its log ({log}):\n\n{_tail(log, log_start)}\n\n"
            "What runs goes on running: `make status` shows it, `make stop-all` stops it."
        )

    def _prepare_database(self, everything: Plan, *, migrate: bool) -> None:
        if everything.postgres is not None:
            everything.postgres.ensure_database(DATABASE)
        if not migrate:
            return
        done = subprocess.run(
            [sys.executable, "-m", "duologue.cli", "migrate"],
            cwd=self.root,
            env={**self._environment, **everything.role_environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise StartRefused(
                f"the database's schema cannot be brought up to date:\n{(done.stdout + done.stderr).strip()}"
            )
        self._say(f"  {'schema':<20} up to date")

    def _tell(self, seconds: float) -> None:
        env = self.env
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(env.nginx_host, env.nginx_host)  # noqa: S104
        url = f"http://{f'[{host}]' if ':' in host else host}:{env.nginx_port}"
        chat = "duologue chat" if env.nginx_port == 8080 else f"duologue chat --url {url}"
        model = "built in" if self.settings.builtin_model else self.settings.openai_base_url or "OpenAI"
        given = {
            "PostgreSQL": self.settings.database_url,
            "Kafka": self.settings.kafka_bootstrap_servers,
            "Redis": self.settings.redis_url or self.settings.redis_host,
        }
        named = [name for name, address in given.items() if address]
        engines = f"  Engines   {', '.join(named)} as in the settings\n" if named else ""
        self._say(
            f"\n{self.settings.app_name} is ready after {seconds:.1f} s.\n"
            f"  Open      {url} (and ports {env.nginx_gateway_port}, {env.nginx_chat_port})\n"
            f"  Terminal  {_shown(Path(sys.executable).parent, self.root)}/{chat}\n"
            f"  Model     {model}\n"
            f"{engines}"
            f"  Logs      make logs, make logs SERVICE=ai-consumer-1; files in {_shown(self.logs, self.root)}\n"
            f"  Stop      make stop-all; make status shows what runs, {LOCAL_ENV} has the ports and numbers."
        )

    def _log(self, program: Program) -> Path:
        return self._supervisor.logs / f"{program.name}.log"


def _is_free(host: str, port: int) -> bool:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError:
        return False
    return True


def _addresses(program: Program) -> str:
    return f"{program.host}:{program.ports[0]}"


def _shown(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tail(path: Path, start: int) -> str:
    """Return the last lines of a log, of what it has from `start` on."""
    if not path.exists():
        return "(it wrote nothing)"
    content = path.read_bytes()
    lines = content[start if start <= len(content) else 0 :].decode(errors="replace").splitlines()
    return "\n".join(lines[-_LAST_LINES:]) or "(it wrote nothing)"
