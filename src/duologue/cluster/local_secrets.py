"""The secrets of the cluster on one machine: made once, kept in its folder, for its owner alone."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dotenv import dotenv_values

from duologue.cluster.server_process import write_private
from duologue.domain.errors import StartRefused

SECRETS: Final = "secrets.env"
_GIVEN_ONCE: Final = ("POSTGRES_PASSWORD", "REDIS_PASSWORD")
"""An operator may choose these by the environment before the first start."""


@dataclass(frozen=True, kw_only=True)
class LocalSecrets:
    """What the cluster's parts let each other in with. Each is a variable of `secrets.env` in upper case."""

    jwt_secret: str
    postgres_password: str
    redis_password: str
    model_key: str
    supervisor_password: str


def local_secrets(folder: Path, environment: Mapping[str, str] = os.environ) -> LocalSecrets:
    """Return the secrets kept in `folder`; the first call makes them (mode 0600).

    The caller holds the folder's lock, so no two processes make them at once.

    Raises:
        StartRefused: the environment names another password than the engine was made with.
    """
    kept = dotenv_values(folder / SECRETS, interpolate=False)
    values = {name.upper(): kept.get(name.upper()) for name in LocalSecrets.__dataclass_fields__}
    for name in _GIVEN_ONCE:
        given = environment.get(name)
        if given and values[name] not in (None, given):
            raise StartRefused(f"{name} is not the one this cluster was made with ({folder / SECRETS}): unset it")
        values[name] = values[name] or given
    complete = {name: value or secrets.token_urlsafe(36) for name, value in values.items()}
    if complete != kept:
        _write(folder / SECRETS, complete)
    return LocalSecrets(**{name.lower(): value for name, value in complete.items()})


def _write(path: Path, values: Mapping[str, str]) -> None:
    draft = path.with_suffix(".new")
    write_private(draft, "".join(f"{name}={_quoted(value)}\n" for name, value in values.items()))
    draft.replace(path)


def _quoted(value: str) -> str:
    """Quote it as dotenv reads it: between single quotes only these and backslashes are special."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
