"""Characters: the public ones and the caller's own."""

# Annotations are not postponed here: FastAPI reads those that name what is local to a factory.
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from duologue.api.access import SignedIn
from duologue.api.params import CharacterId, Slug
from duologue.domain.clock import rfc3339
from duologue.domain.errors import Rejected
from duologue.domain.ids import DEFAULT_TENANT
from duologue.protocol.codes import ErrorCode
from duologue.store.characters import CharacterRow, find_character, list_characters
from duologue.store.database import Database
from duologue.store.users import UserRow


class Character(BaseModel):
    """Who answers."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "01977a50-0000-7000-8000-000000000001",
                "slug": "assistant",
                "name": "Assistant",
                "description": "Helpful with everything.",
                "system_prompt": None,
                "greeting": "Hello! What can I do for you?",
                "model": None,
                "temperature": 0.7,
                "max_tokens": None,
                "avatar_url": None,
                "tags": ["general"],
                "is_public": True,
                "is_active": True,
                "created_by": None,
                "created_at": "2026-01-05T12:00:00.000Z",
                "updated_at": "2026-01-05T12:00:00.000Z",
            }
        }
    )

    id: str
    slug: str
    name: str
    description: str
    system_prompt: str | None = Field(description="What the model is told; shown to its owner only.")
    greeting: str | None
    model: str | None
    temperature: float | None
    max_tokens: int | None
    avatar_url: str | None
    tags: list[str]
    is_public: bool
    is_active: bool
    created_by: str | None = Field(description="Its owner; null for one that comes with the server.")
    created_at: str
    updated_at: str


def router(database: Database, signed_in: SignedIn) -> APIRouter:
    """Serve `/characters` for whoever has a token."""
    api = APIRouter(tags=["Characters"])

    @api.get("/characters", summary="The public characters and the caller's own")
    async def list_all(user: Annotated[UserRow, Depends(signed_in)]) -> list[Character]:
        rows = await database.read(list_characters, user.tenant, user.uid)
        return [_shown(row, user.uid) for row in rows]

    _serve_single(api, database, signed_in)
    return api


def open_router(database: Database, signed_in: SignedIn) -> APIRouter:
    """Serve `/api/characters`: the list is open to all and holds the public ones, for pages that offer a choice."""
    api = APIRouter(prefix="/api", tags=["Characters"])

    @api.get("/characters", summary="The public characters, without a token")
    async def list_public() -> list[Character]:
        return [_shown(row, None) for row in await database.read(list_characters, DEFAULT_TENANT)]

    _serve_single(api, database, signed_in)
    return api


def _serve_single(api: APIRouter, database: Database, signed_in: SignedIn) -> None:
    @api.get("/characters/id/{character_id}", summary="One character, by its id")
    async def by_id(character_id: CharacterId, user: Annotated[UserRow, Depends(signed_in)]) -> Character:
        return _shown(await database.read(_by_id, user, character_id), user.uid)

    @api.get("/characters/{slug}", summary="One character, by its slug")
    async def by_slug(slug: Slug, user: Annotated[UserRow, Depends(signed_in)]) -> Character:
        return _shown(await database.read(_by_slug, user, slug), user.uid)


def _by_id(conn: Connection, user: UserRow, character_id: str) -> CharacterRow:
    row = find_character(conn, user.tenant, character_id, user.uid)
    return _found(row if row is not None and row.id == character_id else None)


def _by_slug(conn: Connection, user: UserRow, slug: str) -> CharacterRow:
    return _found(find_character(conn, user.tenant, slug, user.uid))


def _found(row: CharacterRow | None) -> CharacterRow:
    if row is None:
        raise Rejected(ErrorCode.CHARACTER_NOT_FOUND, "There is no such character.")
    return row


def _shown(row: CharacterRow, uid: str | None) -> Character:
    is_owner = uid is not None and row.created_by == uid
    return Character(
        id=row.id,
        slug=row.slug,
        name=row.name,
        description=row.description,
        system_prompt=row.system_prompt if is_owner else None,
        greeting=row.greeting,
        model=row.model,
        temperature=row.temperature,
        max_tokens=row.max_tokens,
        avatar_url=row.avatar_url,
        tags=list(row.tags),
        is_public=row.is_public,
        is_active=row.is_active,
        created_by=row.created_by,
        created_at=rfc3339(row.created_at),
        updated_at=rfc3339(row.updated_at),
    )
