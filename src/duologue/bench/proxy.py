"""The nginx in front of a distributed system: a stand-in until that of `deploy/nginx` can be used here."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from duologue.cluster.ports import free_ports
from duologue.cluster.server_process import EngineMissing, ServerProcess

_CONFIGURATION: Final = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    large_client_header_buffers 8 16k;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    upstream websocket_servers {{ least_conn; {websocket_servers} }}
    upstream apis {{ {apis} keepalive 16; }}
    server {{
        listen 127.0.0.1:{port};
        proxy_http_version 1.1;
        proxy_buffering off;
        proxy_connect_timeout 1s;
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_next_upstream error timeout http_502 http_503;
        location /ws {{
            proxy_pass http://websocket_servers;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_read_timeout 1h; proxy_send_timeout 1h;
        }}
        location / {{ proxy_pass http://apis; proxy_set_header Connection ''; }}
    }}
}}
"""


class Proxy(ServerProcess):
    """nginx over the given ports of 127.0.0.1."""

    title = "nginx"

    def __init__(self, folder: Path, *, websocket_servers: Sequence[int], apis: Sequence[int]) -> None:
        super().__init__(folder)
        self.port = free_ports(1)[0]
        self._websocket_servers = websocket_servers
        self._apis = apis

    @property
    def command(self) -> list[str]:
        program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
        if program is None:
            raise EngineMissing("there is no nginx: install the system's package nginx")
        return [program, "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"), "-e", "stderr"]

    def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "nginx.conf").write_text(
            _CONFIGURATION.format(
                folder=self.folder,
                port=self.port,
                websocket_servers=_servers(self._websocket_servers),
                apis=_servers(self._apis),
            )
        )

    def answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1.0).close()
        except OSError:
            return False
        return True


def _servers(ports: Sequence[int]) -> str:
    return " ".join(f"server 127.0.0.1:{port} max_fails=1 fail_timeout=1s;" for port in ports)
