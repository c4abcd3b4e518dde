"""The API over HTTP on real engines, and a past for it to show."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
from fastapi import FastAPI
from sqlalchemy import Connection

from duologue.api import accounts, characters, conversations, dead_letters
from duologue.api.access import OperatorOnly, SignedIn
from duologue.api.app import create_app
from duologue.auth.tokens import TokenIssuer, TokenVerifier
from duologue.config import Settings
from duologue.delivery.stream import UserStreams
from duologue.domain.clock import Clock
from duologue.domain.ids import DEFAULT_TENANT, message_id, new_id
from duologue.domain.records import INCOMING_TOPIC, MessageSubmitted, Usage
from duologue.engines.redis import Redis
from duologue.log.port import LogProducer
from duologue.log.valkey_streams import open_streams_log
from duologue.store.conversations import ConversationRow, default_conversation, new_conversation
from duologue.store.database import Database, open_database
from duologue.store.messages import Incoming, Refused, StoredRequest, store_messages
from duologue.store.outcomes import Completion, complete
from duologue.store.replies import claim
from duologue.store.users import UserRow, find_user

SECRET = "a secret of the tests, long enough to sign with"


@dataclass
class ManualClock:
    """A clock that tests set. Milliseconds since the Unix epoch."""

    now: int = 1_767_614_400_000

    def __call__(self) -> int:
        return self.now


class SwitchedProducer:
    """A producer that fails while `failure` is set: with it before it appends, or, `after`, although it has."""

    def __init__(self, producer: LogProducer) -> None:
        self._producer = producer
        self.failure: Exception | None = None
        self.after = False

    async def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, str]) -> None:
        if self.failure is not None and not self.after:
            raise self.failure
        await self._producer.append(topic, key, value, headers)
        if self.failure is not None:
            raise self.failure


@dataclass
class Api:
    """An API under test: its HTTP client, and what stands behind it."""

    http: httpx.AsyncClient
    database: Database
    issuer: TokenIssuer
    clock: ManualClock
    app: FastAPI
    producer: SwitchedProducer
    redis: Redis
    offset: int = field(default=0)

    async def guest(self, user_id: str) -> tuple[dict[str, str], UserRow]:
        """Make a guest; return the headers of their requests, and their row."""
        answer = await self.http.post("/token", params={"userid": user_id})
        answer.raise_for_status()
        user = await self.database.read(find_user, DEFAULT_TENANT, user_id)
        assert user is not None
        return bearer(answer.json()["token"]), user

    def operator(self, name: str = "eve") -> dict[str, str]:
        """Return the headers of an operator's requests."""
        return bearer(self.issuer.issue_operator(name, lifetime_seconds=60))

    async def appended(self, topic: str) -> list[tuple[str, bytes, dict[str, str]]]:
        """Return key, value and headers of what is on a topic."""
        entries = await self.redis.call("XRANGE", f"log:{topic}", "-", "+")
        found = [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in entries]
        return [(each[b"k"].decode(), each[b"v"], json.loads(each[b"h"])) for each in found]

    async def conversation(self, user: UserRow, *, default: bool = True) -> ConversationRow:
        """Return the user's default conversation, or a further one."""
        make = default_conversation if default else new_conversation
        return await self.database.write(make, user, None, self.clock())

    async def say(self, user: UserRow, conversation: ConversationRow, content: str, **fields: Any) -> StoredRequest:
        """Store a user's message, as the ai-consumer does with a record of the log."""
        self.clock.now += 1
        self.offset += 1
        client_id = new_id()
        record = MessageSubmitted(
            tenant=user.tenant,
            user_id=user.user_id,
            uid=user.uid,
            message_id=message_id(
                tenant=user.tenant, uid=user.uid, client_id=client_id, content=content, conversation_id=None
            ),
            conversation_id=conversation.id,
            client_id=client_id,
            content=content,
            submitted_at=self.clock(),
            correlation_id="c-1",
            **fields,
        )
        batch = [Incoming(record, INCOMING_TOPIC, 0, self.offset)]
        [stored] = await self.database.write(store_messages, batch, self.clock())
        assert not isinstance(stored, Refused)
        return stored

    async def answer(self, request: StoredRequest, **fields: Any) -> None:
        """Claim a reply and end it; `fields` are those of `Completion`."""
        self.clock.now += 1
        await self.database.write(_answer, request, self.clock(), fields)


def _answer(conn: Connection, request: StoredRequest, now: int, fields: dict[str, Any]) -> None:
    [claimed] = claim(conn, [request.reply_id], "worker", now)
    known: dict[str, Any] = {"state": "complete", "completed_at": now, "model": "scripted", "usage": Usage(1, 2, 3)}
    completion = Completion(reply_id=request.reply_id, attempt=claimed.attempt, **known | fields)
    assert complete(conn, [completion], [], now) == {request.reply_id}


@asynccontextmanager
async def open_api(folder: Path, valkey_url: str, **settings: Any) -> AsyncIterator[Api]:
    """Open an API on the database in `folder`, which is migrated, and the Valkey at `valkey_url`."""
    redis = Redis(valkey_url, name="api", scripts=UserStreams.scripts)
    async with (
        open_database(database_url(folder)) as database,
        redis,
        open_streams_log(valkey_url, takeover=True) as log,
    ):
        producer = SwitchedProducer(log.producer)
        clock = ManualClock()
        issuer, verifier = TokenIssuer(SECRET, clock=clock), TokenVerifier(SECRET, clock=clock)
        signed_in = SignedIn(database, verifier, clock)
        app = create_app(
            title="Duologue",
            routers=[
                accounts.router(
                    settings=Settings(**settings),
                    database=database,
                    streams=UserStreams(redis, durable=True),
                    issuer=issuer,
                    verifier=verifier,
                    clock=clock,
                ),
                characters.router(database, signed_in),
                conversations.router(database, signed_in, clock),
                dead_letters.router(database, producer, OperatorOnly(database, verifier), clock),
            ],
            root_routers=[characters.open_router(database, signed_in)],
        )
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield Api(http, database, issuer, clock, app, producer, redis)


def database_url(folder: Path) -> str:
    """Return the URL of the API's database in `folder`."""
    return f"sqlite:///{folder}/api.db"


def bearer(token: str) -> dict[str, str]:
    """Return the headers of a request with `token`."""
    return {"Authorization": f"Bearer {token}"}


def external_token(user_id: str, clock: Clock, **claims: str) -> str:
    """Return a token as a product's own backend signs it: without the row of its user."""
    return jwt.encode({"sub": user_id, "exp": clock() // 1000 + 60, **claims}, SECRET, algorithm="HS256")
