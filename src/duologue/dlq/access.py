"""Which server an operator works on, and with what token.

In the embedded mode the running server holds the data folder and the log in it, so its API is the way to its dead
letters; the same way works in the distributed mode, from any machine.
"""

from __future__ import annotations

import getpass
import re
from dataclasses import dataclass

from duologue.auth.secret import checked_secret, kept_secret
from duologue.auth.tokens import TokenIssuer
from duologue.client.address import server_address
from duologue.config import Settings, load_settings, local_url
from duologue.domain.errors import StartRefused
from duologue.domain.ids import is_valid_user_id


@dataclass(frozen=True, slots=True)
class Access:
    """The base address of a server, without a path, and an operator's token for it."""

    server: str
    token: str


def access(url: str, token: str, *, lifetime_seconds: int = 3600) -> Access:
    """Return where to work and with what: what is given, else what the settings here tell.

    Raises:
        StartRefused: `url` is no address, the settings are not valid, or there is no secret to sign a token with.
    """
    if url and token:
        return Access(server_address(url), token)
    settings = load_settings()
    return Access(
        server_address(url) if url else local_url(settings.host, settings.port),
        token or operator_token(settings, operator_name(), lifetime_seconds=lifetime_seconds),
    )


def operator_token(settings: Settings, name: str, *, lifetime_seconds: int) -> str:
    """Return a token for the operator `name`, signed with the secret of the settings or of the data folder.

    Raises:
        StartRefused: there is no secret here, or `name` cannot be a name.
    """
    if not is_valid_user_id(name):
        raise StartRefused(f"{name!r} cannot be a name: 1 to 64 letters, digits and . _ @ - make one.")
    given = settings.jwt_secret.get_secret_value()
    secret = checked_secret(given) if given else kept_secret(settings.data_dir)
    if secret is None:
        raise StartRefused(
            f"there is no key here to sign an operator's token with: JWT_SECRET is not set, and {settings.data_dir} "
            "holds none that this user may read. Run this where the server runs, or give --token."
        )
    return TokenIssuer(secret).issue_operator(name, lifetime_seconds=lifetime_seconds)


def operator_name() -> str:
    """Return the name of this machine's user, as far as it can be one here: it is noted with what is done."""
    try:
        name = re.sub(r"[^A-Za-z0-9._@-]", "-", getpass.getuser())[:64]
    except (OSError, KeyError):  # a user without a name, as in some containers
        name = ""
    return name or "operator"
