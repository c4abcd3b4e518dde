"""What a model is to be asked: character, settings, and what was said before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.store.characters import DEFAULT_CHARACTER_ID
from duologue.store.dialect import read_json
from duologue.store.prepared import Prepared, is_one_of
from duologue.store.schema import characters, conversations, messages

HISTORY_LIMIT: Final = 100
"""Turns of history at most: a user's message and its answer are two."""


class HistoryTurn(msgspec.Struct, frozen=True):
    """One thing that was said."""

    role: Literal["user", "assistant"]
    content: str


class PromptSource(msgspec.Struct, frozen=True, kw_only=True):
    """What the prompt for one reply is made of.

    `system_prompt`, `model`, `temperature` and `max_tokens` are the conversation's settings, else the character's,
    else None. `history` is what was said at smaller positions, the oldest first. `content` is the message to answer.
    """

    system_prompt: str | None
    model: str | None
    temperature: float | None
    max_tokens: int | None
    history: list[HistoryTurn]
    content: str


_question = messages.alias("question")
_said = messages.alias("said")

_SOURCES: Final = Prepared(
    sa.select(
        messages.c.id,
        _question.c.content,
        conversations.c.settings,
        characters.c.system_prompt,
        characters.c.model,
        characters.c.temperature,
        characters.c.max_tokens,
    )
    .join(_question, _question.c.id == messages.c.reply_to)
    .join(conversations, conversations.c.id == messages.c.conversation_id)
    .join(characters, characters.c.id == sa.func.coalesce(conversations.c.character_id, DEFAULT_CHARACTER_ID))
    .where(is_one_of(messages.c.id))
)

# By position, never by time, and bounded on the index: the 10,000th message costs what the 100th does. A failed or
# unfinished reply is no answer; of several versions the last row, the highest generation, is the one that stands.
_HISTORY: Final = Prepared(
    sa.select(messages.c.id, _said.c.position, _said.c.role, _said.c.content)
    .join(
        _said,
        sa.and_(
            _said.c.conversation_id == messages.c.conversation_id,
            _said.c.position < messages.c.position,
            _said.c.position >= messages.c.position - HISTORY_LIMIT // 2,
        ),
    )
    .where(
        is_one_of(messages.c.id),
        sa.text("said.state IN ('stored', 'complete', 'stopped')"),
        _said.c.content != "",
    )
    .order_by(messages.c.id, _said.c.position, _said.c.generation)
)


def read_prompts(conn: Connection, reply_ids: Sequence[str]) -> dict[str, PromptSource]:
    """Return what to ask for each of these replies."""
    if not reply_ids:
        return {}
    histories = _read_histories(conn, reply_ids)
    rows = _SOURCES.rows(conn, {"ids": reply_ids})
    return {row[0]: _source(row, histories.get(row[0], {})) for row in rows}


def _read_histories(conn: Connection, reply_ids: Sequence[str]) -> dict[str, dict[tuple[int, str], HistoryTurn]]:
    histories: dict[str, dict[tuple[int, str], HistoryTurn]] = {}
    for reply_id, position, role, content in _HISTORY.rows(conn, {"ids": reply_ids}):
        # A later generation takes the place of the earlier one, between the same neighbours.
        histories.setdefault(reply_id, {})[position, role] = HistoryTurn(role, content)
    return histories


def _source(row: Sequence[Any], history: dict[tuple[int, str], HistoryTurn]) -> PromptSource:
    _, content, settings_json, system_prompt, model, temperature, max_tokens = row
    settings = read_json(settings_json)
    return PromptSource(
        system_prompt=settings.get("system_prompt") or system_prompt,
        model=settings.get("model") or model,
        temperature=_first(settings.get("temperature"), temperature),
        max_tokens=_first(settings.get("max_tokens"), max_tokens),
        history=list(history.values()),
        content=content,
    )


def _first(setting: Any, default: Any) -> Any:
    return default if setting is None else setting
