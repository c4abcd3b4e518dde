"""The key that signs tokens: given by the operator, or made once for the embedded mode."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from duologue.domain.errors import StartRefused

MIN_SECRET_BYTES: Final = 32
"""HS256 asks for a key at least as long as its hash (RFC 7518, section 3.2)."""

_NAME: Final = "jwt_secret"


def checked_secret(secret: str) -> str:
    """Return `secret` if it is long enough to sign with.

    Raises:
        StartRefused: it is not; the message says what to do.
    """
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise StartRefused(f"JWT_SECRET must have {MIN_SECRET_BYTES} characters or more")
    return secret


def kept_secret(data_dir: Path) -> str | None:
    """Return the secret kept in `data_dir`, None if none was made there yet or this user may not read it.

    Raises:
        StartRefused: the file is there and holds less than a secret.
    """
    try:
        return checked_secret((data_dir / _NAME).read_text(encoding="ascii").strip())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def secret_of(data_dir: Path) -> str:
    """Return the secret kept in `data_dir/jwt_secret`, made on the first call (mode 0600).

    The caller holds the folder's lock, so no two processes make one at once.

    Raises:
        StartRefused: the file is there and holds less than a secret.
    """
    path = data_dir / _NAME
    if path.exists():
        return checked_secret(path.read_text(encoding="ascii").strip())
    secret = secrets.token_urlsafe(48)
    # Written aside and renamed: a process that dies here must not leave a file with half a secret.
    draft = path.with_suffix(".new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return secret
