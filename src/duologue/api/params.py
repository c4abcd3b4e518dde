"""Parameters that several routes share: their bounds, and how `/docs` describes them."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

from fastapi import Path, Query

ID_PATTERN: Final = r"^[A-Za-z0-9-]{1,64}$"
SLUG_PATTERN: Final = r"^[a-z0-9][a-z0-9_-]{0,63}$"
DEFAULT_LIMIT: Final = 50

_CURSOR: Final[dict[str, Any]] = {"max_length": 512, "pattern": r"^[A-Za-z0-9_=-]*$"}

Limit: TypeAlias = Annotated[int, Query(ge=1, le=100, description="How many items at most.")]
Cursor: TypeAlias = Annotated[str | None, Query(description="`next_cursor` of the page before, as it came.", **_CURSOR)]
After: TypeAlias = Annotated[str | None, Query(description="A `next_cursor`: what changed since.", **_CURSOR)]
Before: TypeAlias = Annotated[str | None, Query(description="A `previous_cursor`: the page before that.", **_CURSOR)]
BeforeMessage: TypeAlias = Annotated[
    str | None, Query(pattern=ID_PATTERN, description="A message's id: the page before that message.")
]
ConversationId: TypeAlias = Annotated[str, Path(pattern=ID_PATTERN, description="One of the caller's conversations.")]
CharacterId: TypeAlias = Annotated[str, Path(pattern=ID_PATTERN, description="A character's id.")]
Slug: TypeAlias = Annotated[str, Path(pattern=SLUG_PATTERN, description="A character's slug.")]
LetterId: TypeAlias = Annotated[str, Path(pattern=ID_PATTERN, description="A dead letter's id.")]
