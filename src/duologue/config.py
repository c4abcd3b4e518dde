"""Settings: every variable of the environment and of `.env`, declared once.

The same declarations give parsing, the example file (`python -m duologue.config > .env.example`), the guide's tables
(`--tables`) and the check that a misspelt name in `.env` is an error which proposes the right one.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import socket
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from duologue.domain.errors import StartRefused

BUILTIN_MODEL: Final = "builtin"
"""The built-in model's name among `FALLBACK_MODELS`."""

BUILTIN_WORKERS: Final = 2
DEFAULT_WORKERS: Final = 64

_Names = Annotated[list[str], NoDecode]
_S = TypeVar("_S", bound=BaseSettings)


def _setting(default: Any, description: str, group: str, **bounds: Any) -> Any:
    """Declare a setting: what it is for, in words for operators, and the group of the example file it stands in."""
    return Field(default, description=description, json_schema_extra={"group": group}, **bounds)


class Settings(BaseSettings):
    """All settings of all roles. Variables are the upper-case forms of these names; durations and sizes name a unit."""

    model_config = SettingsConfigDict(env_file=None, extra="ignore", frozen=True, validate_default=True)

    # Server
    host: str = _setting("127.0.0.1", "Address to listen on.", "Server")
    port: int = _setting(8080, "Port to listen on.", "Server", ge=0, le=65535)
    trusted_proxies: _Names = _setting(
        [],
        "Addresses and networks of the proxies whose X-Forwarded-For and X-Forwarded-Proto are believed, separated by "
        "commas; empty: nobody's.",
        "Server",
    )
    server_id: str = _setting(
        "", "Name of this process in frames, logs and metrics; made from the host name if empty.", "Server"
    )
    app_name: str = _setting("Duologue", "Name shown to people.", "Server")
    data_dir: Path = _setting(Path("data"), "Folder of the embedded mode's data.", "Server")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = _setting("INFO", "Least level that is logged.", "Server")
    log_format: Literal["auto", "json", "console"] = _setting(
        "auto", "`json`, `console`, or `auto`: for people on a terminal, else JSON.", "Server"
    )
    drain_seconds: float = _setting(30.0, "Time to finish what was accepted after SIGTERM.", "Server", gt=0)
    drain_spread_seconds: float = _setting(3.0, "Time over which sockets are closed while draining.", "Server", ge=0)

    # Engines
    kafka_bootstrap_servers: str = _setting("", "Kafka's brokers; empty: the log is Streams in Redis.", "Engines")
    redis_url: str = _setting("", "Redis or Valkey; empty: REDIS_HOST, else the bundled Valkey.", "Engines")
    redis_host: str = _setting("", "Host of Redis, if REDIS_URL is not set.", "Engines")
    redis_port: int = _setting(6379, "Port of Redis, with REDIS_HOST.", "Engines", ge=1, le=65535)
    redis_password: SecretStr = _setting(
        SecretStr(""), "Password of Redis, if it is not in REDIS_URL; its user, if any, is in REDIS_URL.", "Engines"
    )
    redis_ssl_ca_location: str = _setting(
        "",
        "File with the certificate authorities that Redis's certificate is checked against, with rediss://; empty: the "
        "system's.",
        "Engines",
    )
    database_url: str = _setting(
        "", "Database, as postgresql://user:password@host/name; empty: SQLite under DATA_DIR.", "Engines"
    )
    database_pool_size: int = _setting(10, "Connections of one process to PostgreSQL at most.", "Engines", ge=1)

    # Kafka
    kafka_partitions: int = _setting(
        12, "Partitions of each topic: the most consumers that share its work. Never to be changed.", "Kafka", ge=1
    )
    kafka_replication_factor: int = _setting(1, "Brokers that hold a copy of each record.", "Kafka", ge=1)
    kafka_min_insync_replicas: int = _setting(
        0, "Copies that must be written before a record counts as written; 0: all but one, at least one.", "Kafka", ge=0
    )
    kafka_topic_prefix: str = _setting(
        "", "What the names of topics and consumer groups begin with, in a Kafka shared with others.", "Kafka"
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = _setting(
        "PLAINTEXT", "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.", "Kafka"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = _setting(
        "SCRAM-SHA-512", "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.", "Kafka"
    )
    kafka_sasl_username: str = _setting("", "User of Kafka, with SASL.", "Kafka")
    kafka_sasl_password: SecretStr = _setting(SecretStr(""), "Password of that user.", "Kafka")
    kafka_ssl_ca_location: str = _setting(
        "",
        "File with the certificate authorities that Kafka's certificate is checked against; empty: the system's.",
        "Kafka",
    )
    kafka_ssl_certificate_location: str = _setting("", "File with this client's certificate, if Kafka asks.", "Kafka")
    kafka_ssl_key_location: str = _setting("", "File with the key of that certificate.", "Kafka")
    kafka_ssl_key_password: SecretStr = _setting(SecretStr(""), "Password of that key.", "Kafka")

    # Model
    openai_api_key: SecretStr = _setting(SecretStr(""), "Key of the provider.", "Model")
    openai_base_url: str = _setting(
        "",
        "Any OpenAI-compatible provider, up to and with /v1. Without it and OPENAI_API_KEY: the built-in model.",
        "Model",
    )
    openai_model: str = _setting("gpt-4o-mini", "Model to ask for.", "Model")
    builtin_model_url: str = _setting(
        "",
        "Where a built-in model is served that several processes share, without a path; empty: each runs its own.",
        "Model",
    )
    builtin_model_key: SecretStr = _setting(SecretStr(""), "Key of that shared model, if it wants one.", "Model")
    fallback_models: _Names = _setting(
        [],
        "Models that stand in, in this order, when the one before does not answer, separated by commas: `model` of the "
        "same provider, `model@https://host/v1` of another, or `builtin`.",
        "Model",
    )
    fallback_api_keys: SecretStr = _setting(
        SecretStr(""),
        "Keys of those other providers, as `host=key` (or `host:port=key`), separated by commas.",
        "Model",
    )
    allowed_models: _Names = _setting([], "Other models that a message may name, separated by commas.", "Model")
    model_connect_timeout_seconds: float = _setting(
        5.0, "Longest wait for a connection to the provider.", "Model", gt=0
    )
    model_first_token_timeout_seconds: float = _setting(30.0, "Longest wait for the first token.", "Model", gt=0)
    model_silence_timeout_seconds: float = _setting(20.0, "Longest silence between tokens.", "Model", gt=0)
    model_total_timeout_seconds: float = _setting(300.0, "Longest time for a whole reply.", "Model", gt=0)
    model_max_tries: int = _setting(7, "Tries at one model for one reply at most.", "Model", ge=1)
    model_retry_seconds: float = _setting(
        60.0, "Time from a model's first failure after which no further try at it begins.", "Model", gt=0
    )
    model_breaker_failure_share: float = _setting(
        0.8,
        "Share of failed tries, among those of the last minute, from which a provider is left alone for a while.",
        "Model",
        gt=0,
        le=1,
    )
    model_breaker_min_tries: int = _setting(10, "Tries before that share is judged.", "Model", ge=1)
    model_breaker_open_seconds: float = _setting(
        5.0, "How long a provider is left alone at first; doubles up to 20 s while it stays away.", "Model", gt=0
    )
    max_workers: int = _setting(0, "Replies at once; 0: 64, with the built-in model 2.", "Model", ge=0)
    user_max_workers: int = _setting(4, "Replies at once for one user.", "Model", ge=1)
    history_max_tokens: int = _setting(3000, "Tokens of a conversation's history in a prompt.", "Model", ge=0)
    delta_interval_ms: int = _setting(40, "Time between two deltas of a reply; doubles under load.", "Model", ge=0)
    delta_max_bytes: int = _setting(256, "Size at which a delta leaves before its time.", "Model", ge=1)

    # Accounts
    jwt_secret: SecretStr = _setting(
        SecretStr(""), "Key that signs tokens, 32 characters or more; embedded: made once under DATA_DIR.", "Accounts"
    )
    guest_tokens: Literal["on", "open", "off"] = _setting(
        "on", "Guest tokens by POST /token?userid=; `open`: again for anybody, for local trials only.", "Accounts"
    )
    guest_token_seconds: int = _setting(7 * 24 * 3600, "Life of a guest token.", "Accounts", ge=1)

    # Limits
    user_rate_limit_max_requests: int = _setting(60, "Messages of one user in a window.", "Limits", ge=1)
    user_rate_limit_window_seconds: int = _setting(60, "Length of that window.", "Limits", ge=1)
    token_rate_limit_max_requests: int = _setting(60, "Tokens issued to one address in a minute.", "Limits", ge=1)
    max_connections_per_user: int = _setting(10, "Sockets of one user on one server.", "Limits", ge=1)
    # With these bounds a message, and its outcome with the longest reply, fit into a record of the log.
    max_frame_bytes: int = _setting(64 * 1024, "Largest frame from a client.", "Limits", ge=1024, le=900_000)
    max_content_characters: int = _setting(8000, "Longest message.", "Limits", ge=1)
    max_metadata_bytes: int = _setting(1024, "Largest metadata of a message.", "Limits", ge=0, le=65_536)
    send_queue_bytes: int = _setting(
        1024 * 1024, "What waits for one socket at most before it is closed.", "Limits", ge=65536
    )
    max_pending_messages: int = _setting(
        20_000, "Messages a consumer holds in memory before it stops reading a partition.", "Limits", ge=1
    )
    max_pending_bytes: int = _setting(
        64 * 1024 * 1024,
        "What these weigh on the log at most; in memory it is about four times as much.",
        "Limits",
        ge=1,
    )
    user_max_pending: int = _setting(
        300, "Messages of one user that wait for their outcome at most.", "Limits", ge=1, le=300
    )
    overload_seconds: float = _setting(
        60.0, "Expected wait for the beginning of a reply beyond which messages are refused.", "Limits", gt=0
    )
    log_timeout_seconds: float = _setting(5.0, "Longest wait for the log's acknowledgement.", "Limits", gt=0)

    @field_validator("allowed_models", "fallback_models", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        return [_network(name) for name in value]

    @field_validator("server_id")
    @classmethod
    def _named(cls, value: str) -> str:
        return value or f"{socket.gethostname()}-{os.getpid()}"

    @property
    def builtin_model(self) -> bool:
        """Whether the built-in model answers: no provider is configured."""
        return not self.openai_base_url and not self.openai_api_key.get_secret_value()

    @property
    def asks_builtin_model(self) -> bool:
        """Whether the built-in model is asked, be it as one that stands in."""
        return self.builtin_model or BUILTIN_MODEL in self.fallback_models

    @property
    def workers(self) -> int:
        """Replies at once."""
        return self.max_workers or (BUILTIN_WORKERS if self.builtin_model else DEFAULT_WORKERS)


def local_url(host: str, port: int) -> str:
    """Return where a server that listens on `host` is reached from this machine."""
    reached = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104  # compared, not bound
    return f"http://{f'[{reached}]' if ':' in reached else reached}:{port}"


def _network(name: str) -> str:
    """Return an address or a network in the form in which it is compared. A name would never match an address."""
    try:
        return str(ipaddress.ip_network(name, strict=False))
    except ValueError:
        raise ValueError(f"{name!r} is neither an address nor a network, such as 10.0.0.7 or 10.0.0.0/8") from None


def load_settings(env_file: Path = Path(".env")) -> Settings:
    """Read the settings: the environment first, then `env_file` if it exists.

    Raises:
        StartRefused: a value is not valid, or the file has a name that is not known.
    """
    return read_settings(Settings, env_file, "Settings are listed in .env.example.")


def read_settings(declared: type[_S], env_file: Path, list_of_names: str) -> _S:
    """Read what `declared` declares: the environment first, then `env_file` if it exists.

    Args:
        declared: each of its fields is a variable, by its upper-case name.
        env_file: lines of NAME=value.
        list_of_names: a sentence that tells where all names stand, for one that is like none of them.

    Raises:
        StartRefused: a value is not valid, or the file has a name that is not known.
    """
    if env_file.is_file():
        _check_names(declared, env_file, list_of_names)
    try:
        return declared(_env_file=env_file)
    except ValidationError as error:
        raise StartRefused("\n".join(_explain(error))) from error


def _check_names(declared: type[BaseSettings], env_file: Path, list_of_names: str) -> None:
    known = [name.upper() for name in declared.model_fields]
    for name in dotenv_values(env_file):
        if name.upper() not in known:
            nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.6)
            hint = f"; did you mean {nearest[0]}?" if nearest else f". {list_of_names}"
            raise StartRefused(f"{env_file}: {name} is not a setting{hint}")


def _explain(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_input=False, include_url=False):
        name = ".".join(str(part) for part in problem["loc"]).upper()
        words = problem["msg"].removeprefix("Value error, ")
        yield f"{name}: {words[:1].lower()}{words[1:]}"


def example_file() -> str:
    """Return `.env.example`: every setting with its meaning and default, by group."""
    first = "# Every setting of Duologue with its default. Copy to .env and uncomment what you change."
    return env_file_of(Settings, first, before_name="# ")


def env_file_of(declared: type[BaseSettings], first_line: str, before_name: str = "") -> str:
    """Return a file with every variable of `declared`, its meaning and its default, by group."""
    lines = [first_line]
    group = ""
    for name, field in declared.model_fields.items():
        if (of := _group(field)) != group:
            group = of
            lines += ["", f"# --- {group} ---"]
        lines += ["", *textwrap.wrap(field.description or "", 110, initial_indent="# ", subsequent_indent="# ")]
        lines.append(f"{before_name}{name.upper()}={_shown(field.default)}")
    return "\n".join(lines) + "\n"


def settings_tables() -> str:
    """Return the tables of the guide to the settings (Markdown), one a group."""
    groups: dict[str, list[str]] = {}
    for name, field in Settings.model_fields.items():
        default = f"`{shown}`" if (shown := _shown(field.default)) else "none"
        groups.setdefault(_group(field), []).append(f"| `{name.upper()}` | {default} | {field.description} |")
    head = "| setting | default | meaning |\n| --- | --- | --- |\n"
    return "\n\n".join(f"## {group}\n\n{head}" + "\n".join(rows) for group, rows in groups.items()) + "\n"


def _group(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["group"]) if isinstance(extra, dict) else ""


def _shown(default: object) -> str:
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    return ",".join(default) if isinstance(default, list) else str(default)


if __name__ == "__main__":
    print(settings_tables() if "--tables" in sys.argv else example_file(), end="")  # noqa: T201  # this is its output
