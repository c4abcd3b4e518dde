"""Dead letters, for operators: what was given up, why, and what becomes of it."""

# Annotations are not postponed here: FastAPI reads those that name what is local to a factory.
from base64 import b64encode
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from duologue.api.access import OperatorOnly
from duologue.api.errors import correlation_id
from duologue.api.params import DEFAULT_LIMIT, Cursor, LetterId, Limit
from duologue.api.replays import Replays
from duologue.domain.clock import Clock, rfc3339, wall_clock
from duologue.log.port import LogProducer
from duologue.store.database import Database
from duologue.store.dead_letters import (
    DeadLetterFilter,
    DeadLetterRow,
    DeadLetterState,
    DeadLetterSummary,
    list_dead_letters,
    read_dead_letter,
)

_EXAMPLE: Final[dict[str, Any]] = {
    "id": "0197a3c2-5a10-7c31-9d1e-0d6f5f1f9a01",
    "state": "open",
    "topic": "incoming_messages",
    "partition": 3,
    "offset": 1042,
    "key": "0197a3c2-11aa-7b02-8a55-3f0c51e4b702",
    "size": 412,
    "error": "the provider is unwell",
    "cause": "http_503",
    "tries": 7,
    "first_at": "2026-01-05T12:00:00.000Z",
    "last_at": "2026-01-05T12:00:58.120Z",
    "tenant": "default",
    "userid": "ada",
    "message_id": "5f0f3c55-9c3b-5d3e-8f43-0a8f8f6f2c11",
    "conversation_id": "0197a3c2-11aa-7b02-8a55-3f0c51e4b702",
    "attempt": 1,
    "handled_at": None,
    "handled_by": None,
}


class DeadLetterItem(BaseModel):
    """A record that was given up."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    id: str
    state: DeadLetterState = Field(description="`replaying`: a replay has begun, and has not ended yet.")
    topic: str = Field(description="Where the record stood, with `partition` and `offset`.")
    partition: int
    offset: int
    key: str
    size: int = Field(description="Of the record, in bytes.")
    error: str = Field(description="Why, in words.")
    cause: str = Field(description="Why, as a short code.")
    tries: int
    first_at: str = Field(description="The first of the tries.")
    last_at: str = Field(description="The last of the tries.")
    tenant: str | None = Field(description="With what follows: whom and what it is about, if that can be told.")
    userid: str | None
    message_id: str | None
    conversation_id: str | None
    attempt: int | None = Field(description="Of the reply that failed, or of the outcome that was refused.")
    handled_at: str | None = Field(description="When it was replayed or dropped.")
    handled_by: str | None = Field(description="Who did that: the `sub` of the operator's token.")


class DeadLetterDetail(DeadLetterItem):
    """A record that was given up, with what it holds. A dropped one holds nothing any more."""

    headers: dict[str, str]
    value: str = Field(description="Its bytes in base64; the beginning of them, if they are fewer than `size`.")
    json_value: Any = Field(alias="json", description="What they say, null if they are not JSON.")


class DeadLetterList(BaseModel):
    """A page of dead letters."""

    items: list[DeadLetterItem]
    next_cursor: str | None = Field(description="The `cursor` of the next page; null on the last.")


def router(
    database: Database, producer: LogProducer, operator_only: OperatorOnly, clock: Clock = wall_clock
) -> APIRouter:
    """Serve `/admin/dlq`, for operators."""
    api = APIRouter(tags=["Operations"])
    _serve_reading(api, database, operator_only, clock)
    _serve_handling(api, Replays(database, producer, clock), operator_only)
    return api


def _serve_reading(api: APIRouter, database: Database, operator_only: OperatorOnly, clock: Clock) -> None:
    @api.get("/admin/dlq", summary="Dead letters, the newest first", dependencies=[Depends(operator_only)])
    async def list_all(
        state: Annotated[
            DeadLetterState | None,
            Query(description="Only those of this state. Among the open ones are those whose replay never ended."),
        ] = None,
        topic: Annotated[str | None, Query(max_length=100, description="Only those of this topic.")] = None,
        cause: Annotated[str | None, Query(max_length=100, description="Only those with this cause.")] = None,
        user: Annotated[str | None, Query(max_length=64, description="Only those about this userid.")] = None,
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> DeadLetterList:
        which = DeadLetterFilter(state=state, topic=topic, cause=cause, user=user)
        page = await database.read(list_dead_letters, cursor, limit, which, clock())
        return DeadLetterList(items=[_item(letter) for letter in page.items], next_cursor=page.next_cursor)

    @api.get(
        "/admin/dlq/{letter_id}",
        summary="One dead letter, with its record",
        dependencies=[Depends(operator_only)],
        response_model=DeadLetterDetail,
    )
    async def single(letter_id: LetterId) -> Response:
        detail = _detail(await database.read(read_dead_letter, letter_id))
        return Response(msgspec.json.encode(detail), media_type="application/json")


def _serve_handling(api: APIRouter, replays: Replays, operator_only: OperatorOnly) -> None:
    @api.post("/admin/dlq/{letter_id}/replay", summary="Replay a dead letter")
    async def replay(
        letter_id: LetterId, request: Request, operator: Annotated[str, Depends(operator_only)]
    ) -> DeadLetterItem:
        """A failed reply is asked for again: the user gets the answer as a new generation. Other records go back onto
        their topic as they were, and if they fail again become a new letter. 409 if somebody has handled it already
        (`dead_letter_replaying`, `dead_letter_replayed`, `dead_letter_dropped`), or its message was answered again or
        deleted meanwhile (`dead_letter_superseded`): then nothing is appended."""
        return _item(await replays.replay(letter_id, by=operator, correlation_id=correlation_id(request)))

    @api.delete("/admin/dlq/{letter_id}", summary="Drop a dead letter")
    async def drop(letter_id: LetterId, operator: Annotated[str, Depends(operator_only)]) -> DeadLetterItem:
        """What its record holds is removed for good."""
        return _item(await replays.drop(letter_id, by=operator))


def _item(letter: DeadLetterSummary) -> DeadLetterItem:
    return DeadLetterItem(**_fields(letter))


def _detail(letter: DeadLetterRow) -> dict[str, Any]:
    """Return the fields of `DeadLetterDetail`. The record's JSON goes through as it is: a number that is out of range,
    or nesting that others choke on, may be why it is here."""
    value = {"value": b64encode(letter.value).decode(), "json": _json(letter.value)}
    return _fields(letter) | {"headers": dict(letter.headers)} | value


def _json(value: bytes) -> msgspec.Raw | None:
    try:
        msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return msgspec.Raw(value)


def _fields(letter: DeadLetterSummary) -> dict[str, Any]:
    return {
        "id": letter.id,
        "state": letter.state,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "key": letter.key,
        "size": letter.size,
        "error": letter.error,
        "cause": letter.cause,
        "tries": letter.tries,
        "first_at": rfc3339(letter.first_at),
        "last_at": rfc3339(letter.last_at),
        "tenant": letter.tenant,
        "userid": letter.user_id,
        "message_id": letter.message_id,
        "conversation_id": letter.conversation_id,
        "attempt": letter.attempt,
        "handled_at": None if letter.handled_at is None else rfc3339(letter.handled_at),
        "handled_by": letter.handled_by,
    }
