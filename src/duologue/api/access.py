"""Who is asking: the bearer token of a request, and the user that it names."""

from typing import Annotated, Final

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Connection

from duologue.auth.tokens import Identity, TokenVerifier
from duologue.domain.clock import Clock
from duologue.domain.errors import Rejected
from duologue.protocol.codes import ErrorCode
from duologue.store.database import Database
from duologue.store.users import UserRow, ensure_user, find_user, user_by_id

BEARER: Final = HTTPBearer(auto_error=False, description="A token of `POST /token`.")


class OperatorOnly:
    """A dependency of routes that are an operator's: the name of the operator.

    An operator need not be a user; a token with a user's row is good for as long as that user is there.

    Raises, when it is resolved:
        Rejected: `invalid_token`, as with `SignedIn`; `operator_only`: it is a good token, and no operator's.
        StoreUnavailable: the database cannot be reached.
    """

    def __init__(self, database: Database, verifier: TokenVerifier) -> None:
        self._database = database
        self._verifier = verifier

    async def __call__(self, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> str:
        identity = _verified(self._verifier, credentials)
        if not identity.operator:
            raise Rejected("operator_only", "This needs an operator's token: `duologue token --operator` makes one.")
        if identity.uid is not None:
            _living(await self._database.read(user_by_id, identity.uid), identity)
        return identity.user.user_id


class SignedIn:
    """A dependency of routes: the user of the request's token.

    Raises, when it is resolved:
        Rejected: `invalid_token`: no token, none of ours, expired, or its user was deleted.
        StoreUnavailable: the database cannot be reached.
    """

    def __init__(self, database: Database, verifier: TokenVerifier, clock: Clock) -> None:
        self._database = database
        self._verifier = verifier
        self._clock = clock

    async def __call__(self, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> UserRow:
        identity = _verified(self._verifier, credentials)
        return _living(await self._user_of(identity), identity)

    async def _user_of(self, identity: Identity) -> UserRow | None:
        if identity.uid is not None:
            return await self._database.read(user_by_id, identity.uid)
        found = await self._database.read(_named, identity)
        return found or await self._database.write(_ensured, identity, self._clock())


def _verified(verifier: TokenVerifier, credentials: HTTPAuthorizationCredentials | None) -> Identity:
    if credentials is None:
        raise Rejected(ErrorCode.INVALID_TOKEN, "A bearer token is needed.")
    return verifier.verify(credentials.credentials)


def _living(user: UserRow | None, identity: Identity) -> UserRow:
    if user is None or user.deleted_at is not None or user.key != identity.user:
        raise Rejected(ErrorCode.INVALID_TOKEN, "The token's user does not exist any more.")
    return user


def _named(conn: Connection, identity: Identity) -> UserRow | None:
    return find_user(conn, identity.user.tenant, identity.user.user_id)


def _ensured(conn: Connection, identity: Identity, now: int) -> UserRow | None:
    """A product's own backend signs tokens without `uid`: their users are made when they first come."""
    return ensure_user(conn, identity.user.tenant, identity.user.user_id, "external", now)
