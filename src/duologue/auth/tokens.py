"""Access tokens: JWT (RFC 7519) signed with HS256.

Claims: `sub` the userid, `exp` and `iat` in seconds, `uid` the user's row, `tenant`, `kind`, `name`. A product's own
backend may sign tokens too: `sub` and `exp` are all that it must set. `role` (a text) or `roles` (a list) with
`operator` opens operations; the program issues such tokens on its command line only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import jwt
import msgspec

from duologue.domain.clock import Clock, wall_clock
from duologue.domain.errors import Rejected
from duologue.domain.ids import DEFAULT_TENANT, UserKey, is_valid_user_id

ALGORITHM: Final = "HS256"
MAX_TOKEN_CHARACTERS: Final = 4096
"""A longer token is refused before anything of it is parsed."""

OPERATOR: Final = "operator"

Kind = Literal["guest", "account", "external"]

_OPTIONS: Final[Any] = {
    "require": ["exp", "sub"],
    "verify_exp": False,  # below, by the injected clock
    "verify_iat": False,  # a signer whose clock is ahead by a second is not an attack
    "verify_aud": False,
    "verify_iss": False,
}


class Identity(msgspec.Struct, frozen=True):
    """Whom a token stands for.

    `uid` is the user's row in the store, None in tokens that a product's own backend signed. `username` is what people
    read. `expires_at` is milliseconds since the Unix epoch. `operator` tells whether it opens operations too.
    """

    user: UserKey
    uid: str | None
    username: str
    kind: Kind
    expires_at: int
    operator: bool = False


class TokenIssuer:
    """Signs tokens."""

    def __init__(self, secret: str, *, clock: Clock = wall_clock) -> None:
        self._secret = secret
        self._clock = clock

    def issue(
        self, user: UserKey, *, uid: str | None, kind: Kind, lifetime_seconds: int, name: str | None = None
    ) -> str:
        """Return a token for `user` that holds for `lifetime_seconds` from now.

        Without `uid` it is a token as a product's own backend signs it.
        """
        now = self._clock() // 1000
        claims: dict[str, Any] = {
            "sub": user.user_id,
            "tenant": user.tenant,
            "kind": kind,
            "iat": now,
            "exp": now + lifetime_seconds,
        }
        if uid is not None:
            claims["uid"] = uid
        if name is not None:
            claims["name"] = name
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM)

    def issue_operator(self, name: str, *, lifetime_seconds: int) -> str:
        """Return a token for the operator `name`, who need not be a user, that holds for `lifetime_seconds`."""
        now = self._clock() // 1000
        claims = {"sub": name, "role": OPERATOR, "iat": now, "exp": now + lifetime_seconds}
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM)


class TokenVerifier:
    """Tells whom a token stands for."""

    def __init__(self, secret: str, *, clock: Clock = wall_clock) -> None:
        self._secret = secret
        self._clock = clock

    def verify(self, token: str) -> Identity:
        """Return whom `token` stands for.

        Raises:
            Rejected: `invalid_token`; the message says whether it has expired or is not valid at all.
        """
        identity = self.verify_expired_ok(token)
        if identity.expires_at <= self._clock():
            raise _invalid("the token has expired")
        return identity

    def verify_expired_ok(self, token: str) -> Identity:
        """Return whom `token` stands or stood for: a guest renews a token with the last one.

        Raises:
            Rejected: `invalid_token`: it was not signed here, or its claims are not what they must be.
        """
        if len(token) > MAX_TOKEN_CHARACTERS or not token.isascii():
            raise _invalid("the token is not valid")
        try:
            claims = jwt.decode(token, self._secret, algorithms=[ALGORITHM], options=_OPTIONS)
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise _invalid("the token is not valid") from error
        return _identity(claims)


def _identity(claims: Mapping[str, Any]) -> Identity:
    user_id = _name(claims.get("sub"))
    kind = claims.get("kind", "external")
    expires = claims.get("exp")
    if kind not in ("guest", "account", "external") or not isinstance(expires, int | float):
        raise _invalid("the token's claims are not valid")
    uid = claims.get("uid")
    name = claims.get("name")
    return Identity(
        user=UserKey(_name(claims.get("tenant", DEFAULT_TENANT)), user_id),
        uid=None if uid is None else _name(uid),
        username=name if isinstance(name, str) and name else user_id,
        kind=kind,
        expires_at=_milliseconds(expires),
        operator=_is_operator(claims),
    )


def _is_operator(claims: Mapping[str, Any]) -> bool:
    roles = claims.get("roles")
    return claims.get("role") == OPERATOR or (isinstance(roles, list) and OPERATOR in roles)


def _milliseconds(seconds: float) -> int:
    try:
        return int(seconds * 1000)
    except (OverflowError, ValueError) as error:  # infinite, or not a number
        raise _invalid("the token's claims are not valid") from error


def _name(claim: object) -> str:
    """Userids, tenants and row ids stand in keys of Redis, so none may hold a character that structures those."""
    if not isinstance(claim, str) or not is_valid_user_id(claim):
        raise _invalid("the token's claims are not valid")
    return claim


def _invalid(message: str) -> Rejected:
    return Rejected("invalid_token", message)
