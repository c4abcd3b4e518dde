"""Accounts: tokens for guests."""

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.security import HTTPAuthorizationCredentials
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from duologue.api.access import BEARER
from duologue.api.client_address import client_address
from duologue.auth.tokens import Identity, TokenIssuer, TokenVerifier
from duologue.config import Settings
from duologue.delivery.stream import RateLimit, UserStreams
from duologue.domain.clock import Clock, wall_clock
from duologue.domain.errors import Rejected
from duologue.domain.ids import DEFAULT_TENANT, UserKey, is_valid_user_id
from duologue.protocol.codes import ErrorCode
from duologue.store.database import Database
from duologue.store.users import UserRow, create_guest, find_user

_TOKEN_WINDOW_SECONDS: Final = 60
_LEAST_KEY_CHARACTERS: Final = 16
_MOST_KEY_CHARACTERS: Final = 128

_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    403: {"description": "`guest_tokens_off`: this server gives none."},
    409: {"description": "`userid_taken`: it is an account's, or a guest's whose token was not sent as bearer."},
    422: {"description": "`invalid_userid`, `userid_missing`, or an `Idempotency-Key` too short or too long."},
    429: {"description": "`rate_limited`: too many tokens for this address; `Retry-After` tells when to ask again."},
}


class Token(BaseModel):
    """A token and whom it stands for. `token` and `access_token` are the same text."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "token": "eyJhbGciOiJIUzI1NiIs…",
                "userid": "ada",
                "expires_in": 604800,
                "access_token": "eyJhbGciOiJIUzI1NiIs…",
                "token_type": "bearer",
            }
        }
    )

    token: str
    userid: str
    expires_in: int = Field(description="Seconds for which it holds.")
    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105  # a kind, not a token


class GuestDesk:
    """Gives guests their tokens. A userid belongs to the guest who took it first, for as long as their data is kept."""

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        streams: UserStreams,
        issuer: TokenIssuer,
        verifier: TokenVerifier,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._address_limit = RateLimit(settings.token_rate_limit_max_requests, _TOKEN_WINDOW_SECONDS)
        self._database = database
        self._streams = streams
        self._issuer = issuer
        self._verifier = verifier
        self._clock = clock

    async def token(self, user_id: str, *, bearer: str | None, request_key: str | None, address: str) -> Token:
        """Return a token for the guest `user_id`.

        Args:
            user_id: the name that is asked for.
            bearer: an earlier token of that guest, expired or not.
            request_key: a secret of the caller's, with which the same guest's token is had again, should the answer
                have been lost.
            address: where the request comes from.

        Raises:
            Rejected: `guest_tokens_off`, `invalid_userid`, `rate_limited` or `userid_taken`.
            Retryable: Redis or the database cannot be reached.
        """
        if self._settings.guest_tokens == "off":
            raise Rejected("guest_tokens_off", "This server gives no guest tokens.")
        if not is_valid_user_id(user_id):
            raise Rejected("invalid_userid", "A userid has 1 to 64 characters of A-Z, a-z, 0-9 and ._@-")
        await self._limit(address)
        user = UserKey(DEFAULT_TENANT, user_id)
        holder = self._holder(bearer)
        return self._issue(await self._database.write(_guest, user, holder, request_key, self._is_open, self._clock()))

    @property
    def _is_open(self) -> bool:
        return self._settings.guest_tokens == "open"

    async def _limit(self, address: str) -> None:
        wait = await self._streams.limit_address(address, self._address_limit)
        if wait is not None:
            raise Rejected(
                ErrorCode.RATE_LIMITED, "Too many tokens were asked for from this address.", retry_after_seconds=wait
            )

    def _holder(self, bearer: str | None) -> Identity | None:
        """Return whom an earlier token stood for. One that cannot be read proves nothing, and is no reason to refuse a
        userid that is free: so a client starts over after a server got a new secret."""
        try:
            return self._verifier.verify_expired_ok(bearer) if bearer else None
        except Rejected:
            return None

    def _issue(self, user: UserRow) -> Token:
        lifetime = self._settings.guest_token_seconds
        token = self._issuer.issue(user.key, uid=user.uid, kind="guest", lifetime_seconds=lifetime)
        return Token(token=token, userid=user.user_id, expires_in=lifetime, access_token=token)


def router(
    *,
    settings: Settings,
    database: Database,
    streams: UserStreams,
    issuer: TokenIssuer,
    verifier: TokenVerifier,
    clock: Clock = wall_clock,
) -> APIRouter:
    """Serve `POST /token`."""
    desk = GuestDesk(
        settings=settings, database=database, streams=streams, issuer=issuer, verifier=verifier, clock=clock
    )
    api = APIRouter(tags=["Accounts"])

    @api.post("/token", summary="A guest token", responses=_ERRORS)
    async def token(
        request: Request,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
        userid: Annotated[
            str | None, Query(description="The name to take: 1 to 64 characters of A-Z, a-z, 0-9 and ._@-")
        ] = None,
        idempotency_key: Annotated[
            str | None,
            Header(
                min_length=_LEAST_KEY_CHARACTERS,
                max_length=_MOST_KEY_CHARACTERS,
                description="Random text that only this client knows. The same request sent again, because its answer "
                "was lost, then gets a token of the guest that the first one made. Keep it as secret as a token.",
            ),
        ] = None,
    ) -> Token:
        if userid is None:
            raise Rejected("userid_missing", "Name a guest with ?userid=. This server has no accounts to log in to.")
        return await desk.token(
            userid,
            bearer=bearer.credentials if bearer else None,
            request_key=idempotency_key,
            address=client_address(request.scope),
        )

    return api


def _guest(
    conn: Connection, user: UserKey, holder: Identity | None, request_key: str | None, is_open: bool, now: int
) -> UserRow:
    """Return the guest's row: a new one if the name is free, the one there if it is the caller's."""
    made = create_guest(conn, user.tenant, user.user_id, now, request_key=request_key)
    if made is not None:
        return made
    found = find_user(conn, user.tenant, user.user_id)
    # An account's name is never a guest's again, though the token from before its registration has the same `uid`.
    if found is None or found.kind != "guest" or not (is_open or _is_of(holder, found)):
        raise Rejected("userid_taken", "This userid is taken. Its owner asks with the last token as bearer.")
    return found


def _is_of(holder: Identity | None, user: UserRow) -> bool:
    return holder is not None and holder.user == user.key and holder.uid == user.uid
