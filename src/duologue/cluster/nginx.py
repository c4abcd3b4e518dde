"""nginx in front of the roles, with the configuration of `deploy/nginx`."""

from __future__ import annotations

import grp
import http.client
import os
import pwd
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from duologue.cluster.server_process import EngineMissing, ServerProcess, children
from duologue.domain.errors import StartRefused

CONFIGURATION: Final = Path(__file__).parents[3] / "deploy" / "nginx"
"""Where the repository keeps what is the same everywhere."""

REMEMBERS_SECONDS: Final = 3
"""How long it sends nobody to a server that was away, also once that is back."""

_SHARED: Final = "duologue.conf"
_OPEN_FILES: Final = 65_536
_CONNECTIONS: Final = 32_768
_PROBE_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.01

_MAIN: Final = """\
# Written anew at each start.
daemon off;
{user}pid nginx.pid;
error_log stderr notice;
worker_processes 2;
worker_rlimit_nofile {files};
worker_shutdown_timeout 10m;
events {{
  worker_connections {connections};
}}
http {{
  client_body_temp_path temp/body;
  proxy_temp_path temp/proxy;
  fastcgi_temp_path temp/fastcgi;
  uwsgi_temp_path temp/uwsgi;
  scgi_temp_path temp/scgi;
  include duologue.conf;
}}
"""


class NginxServer(ServerProcess):
    """nginx with its ports and the servers behind it; needs no root.

    What it is given may be changed while it runs; `reload` then makes it so.

    Args:
        folder: its configuration and temporary files.
        ports: to listen on.
        websocket_servers: `host:port` of each.
        api_servers: the same.
        trusted_proxies: addresses or networks of proxies in front of it.
        host: the address to listen on.
        configuration: the folder that has `duologue.conf`.
    """

    title = "nginx"
    death_signal = signal.SIGTERM  # its workers would outlive a master that is killed

    def __init__(
        self,
        folder: Path,
        *,
        ports: Sequence[int],
        websocket_servers: Sequence[str],
        api_servers: Sequence[str],
        trusted_proxies: Sequence[str] = (),
        host: str = "127.0.0.1",
        configuration: Path = CONFIGURATION,
    ) -> None:
        super().__init__(folder)
        self.host = host
        self.ports = ports
        self.websocket_servers = websocket_servers
        self.api_servers = api_servers
        self.trusted_proxies = trusted_proxies
        self._configuration = configuration

    @property
    def url(self) -> str:
        """Where the page and the API are, on the first of its ports."""
        return f"http://{self._address}:{self.ports[0]}"

    @property
    def command(self) -> list[str]:
        # Without `-e` it would try to write to the log file that it was built with.
        return [nginx_program(), "-e", "stderr", "-p", f"{self.folder.resolve()}/", "-c", "nginx.conf"]

    def prepare(self) -> None:
        nginx_program()
        shared = self._configuration / _SHARED
        if not shared.is_file():
            raise EngineMissing(f"there is no {shared}: nginx is run from the repository's folder")
        included = self.folder / "duologue.d"
        for folder in (included, self.folder / "temp"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(shared, self.folder / _SHARED)
        _write(self.folder / "nginx.conf", [_main()])
        _write(included / "listen.conf", (f"listen {self._address}:{port} backlog=4096;" for port in self.ports))
        _write(included / "websocket-servers.conf", map(_server, self.websocket_servers))
        _write(included / "api-servers.conf", map(_server, self.api_servers))
        _write(included / "trusted-proxies.conf", (f"set_real_ip_from {proxy};" for proxy in self.trusted_proxies))

    def check(self) -> None:
        """Let nginx look at its prepared configuration.

        Raises:
            StartRefused: there is a fault in it; the message has nginx's words.
        """
        done = subprocess.run([*self.command, "-t", "-q"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise StartRefused(f"nginx refuses its configuration: {done.stderr.strip()}")

    def reload(self) -> None:
        """Take over what was changed; return when the old workers take nothing new. Their sockets stay open.

        Raises:
            StartRefused: it does not run, or there is a fault in the configuration: then all stays as it was.
        """
        self.prepare()
        self.check()
        before = children(self.pid)
        os.kill(self.pid, signal.SIGHUP)
        deadline = time.monotonic() + self.start_seconds
        while not (all(map(_is_leaving, before)) and self.answers()):
            if time.monotonic() > deadline:
                raise StartRefused(f"nginx does not take its new configuration over: {self.log_tail()}")
            time.sleep(_POLL_SECONDS)

    def answers(self) -> bool:
        connection = http.client.HTTPConnection(self.host, self.ports[0], timeout=_PROBE_SECONDS)
        try:
            connection.request("GET", "/nginx-health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    @property
    def _address(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def _is_leaving(worker: int) -> bool:
    """Tell whether a worker has ended, or takes nothing new: it says so in its title."""
    try:
        return b"shutting down" in Path(f"/proc/{worker}/cmdline").read_bytes()
    except OSError:
        return True


def nginx_program() -> str:
    """Return the program's path. Debian keeps it where ordinary users do not look.

    Raises:
        EngineMissing: there is none.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    if found := shutil.which("nginx", path=path):
        return found
    raise EngineMissing("there is no nginx: install the system's package nginx (Debian: apt-get install nginx)")


def _main() -> str:
    files = _OPEN_FILES
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY:
        files = min(files, hard)
    return _MAIN.format(user=_user_line(), files=files, connections=min(_CONNECTIONS, files))


def _user_line() -> str:
    """As root its workers would be nobody, and not get at its folder."""
    if os.geteuid() != 0:
        return ""
    return f"user {pwd.getpwuid(0).pw_name} {grp.getgrgid(0).gr_name};\n"


def _server(address: str) -> str:
    return f"server {address} max_fails=1 fail_timeout={REMEMBERS_SECONDS}s;"


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
