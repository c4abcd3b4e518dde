"""Who a person is when they do not say: a guest name, made once and kept."""

from __future__ import annotations

import getpass
import re
import secrets
from pathlib import Path
from typing import Final

from duologue.client.tokens import config_folder
from duologue.domain.ids import is_valid_user_id

_ALPHABET: Final = "abcdefghjkmnpqrstuvwxyz23456789"
_LONGEST_LOGIN: Final = 32


def guest_name(folder: Path | None = None) -> str:
    """Return the guest name kept in `folder` (default: the settings of this user); make one if there is none."""
    path = (folder or config_folder()) / "guest"
    try:
        name = path.read_text("utf-8").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        name = ""
    return name if is_valid_user_id(name) else _make(path)


def _make(path: Path) -> str:
    name = f"{_login()}-{''.join(secrets.choice(_ALPHABET) for _ in range(4))}"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_text(name + "\n", "utf-8")
    return name


def _login() -> str:
    try:
        login = getpass.getuser()
    except (OSError, KeyError, ImportError):
        login = ""
    return re.sub(r"[^A-Za-z0-9._-]", "", login)[:_LONGEST_LOGIN] or "guest"
