"""What the cluster on one machine is made of: ports, numbers of processes, its folder. `deploy/local.env` holds it.

The file is made from these declarations (`python -m duologue.cluster.local_env > deploy/local.env`) and then belongs to
whoever runs the cluster. Settings of Duologue itself are not here but in `.env`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from duologue.config import env_file_of, read_settings
from duologue.domain.errors import StartRefused

LOCAL_ENV: Final = Path("deploy/local.env")

_MOST: Final = 50
"""Processes of one role at most: the ports of the roles lie so far apart and more."""

_LAST_PORT: Final = 65_535

_FIRST_LINE: Final = """\
# The cluster on one machine (`make start-all`): its ports, how many processes of each role, its folder. With Docker the
# same names mean the same; the folder and the ports inside are then Docker's own.
# The environment wins over this file (`NGINX_PORT=9080 make start-all`). `make start-all` also applies changes.
# Settings of Duologue itself, such as the model's provider, stand in `.env` (see .env.example)."""


def _declared(default: Any, description: str, group: str, **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"group": group}, **bounds)


def _port(default: int, description: str, group: str) -> Any:
    return _declared(default, description, group, ge=1, le=_LAST_PORT)


def _number(default: int, description: str) -> Any:
    return _declared(default, description, "How many of each role", ge=1, le=_MOST)


class LocalEnv(BaseSettings):
    """All of `deploy/local.env`. Variables are the upper-case forms of these names."""

    model_config = SettingsConfigDict(env_file=None, extra="ignore", frozen=True, validate_default=True)

    cluster_dir: Path = _declared(
        Path(".cluster"), "Folder of the cluster's data, logs and passwords; relative to the repository.", "Folder"
    )

    # nginx: what clients connect to
    nginx_host: str = _declared(
        "127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in. All else listens on 127.0.0.1.", "nginx"
    )
    nginx_port: int = _port(8080, "Page, API and sockets.", "nginx")
    nginx_gateway_port: int = _port(8000, "The same, for clients that expect an API gateway here.", "nginx")
    nginx_chat_port: int = _port(8004, "The same, for clients that expect a chat socket here.", "nginx")

    websocket_servers: int = _number(2, "websocket-server: holds the clients' sockets.")
    ai_consumers: int = _number(1, "ai-consumer: asks the model.")
    message_relays: int = _number(1, "message-relay: delivers finished replies.")
    apis: int = _number(1, "api: the HTTP API and the page.")

    postgres_port: int = _port(15432, "PostgreSQL.", "Ports inside")
    kafka_port: int = _port(19092, "Kafka.", "Ports inside")
    kafka_controller_port: int = _port(19093, "Kafka's controller.", "Ports inside")
    valkey_port: int = _port(16379, "Valkey.", "Ports inside")
    model_port: int = _port(18500, "The built-in model; it is served only if `.env` names no provider.", "Ports inside")
    websocket_server_port: int = _port(
        18100, "The first websocket-server; each further one takes the next.", "Ports inside"
    )
    ai_consumer_port: int = _port(18200, "The first ai-consumer.", "Ports inside")
    message_relay_port: int = _port(18300, "The first message-relay.", "Ports inside")
    api_port: int = _port(18400, "The first api.", "Ports inside")

    def ports(self) -> Iterator[tuple[str, int]]:
        """Yield each port with the variable that it comes from."""
        several = {
            "websocket_server_port": self.websocket_servers,
            "ai_consumer_port": self.ai_consumers,
            "message_relay_port": self.message_relays,
            "api_port": self.apis,
        }
        for name in type(self).model_fields:
            if name.endswith("_port"):
                first = getattr(self, name)
                yield from ((name.upper(), first + index) for index in range(several.get(name, 1)))


def read_local_env(root: Path) -> LocalEnv:
    """Read `deploy/local.env` of the repository in `root`; the environment wins.

    Raises:
        StartRefused: it is not there, has a name that is not known, or a value that is not valid.
    """
    file = root / LOCAL_ENV
    if not file.is_file():
        raise StartRefused(f"{file} is missing: run this in the repository's folder")
    local_env = read_settings(LocalEnv, file, "`python -m duologue.cluster.local_env` prints all names.")
    _check_ports(local_env)
    return local_env


def _check_ports(local_env: LocalEnv) -> None:
    """Refuse a port that two programs would share, or that is none. Raises StartRefused."""
    names: dict[int, str] = {}
    for name, port in local_env.ports():
        if port > _LAST_PORT:
            raise StartRefused(f"{name}: {port} is no port")
        if port in names:
            raise StartRefused(f"port {port} is given twice, by {names[port]} and {name}")
        names[port] = name


def example_file() -> str:
    """Return `deploy/local.env` as it is delivered."""
    return env_file_of(LocalEnv, _FIRST_LINE)


if __name__ == "__main__":
    print(example_file(), end="")  # noqa: T201  # this is its output
