"""What a model is to be asked: character, settings, and what was said before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.store.characters import DEFAULT_CHARACTER_ID
from duologue.store.dialect import json_rows, read_json
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

SETTINGS: Final = (
    conversations.c.settings,
    characters.c.system_prompt,
    characters.c.model,
    characters.c.temperature,
    characters.c.max_tokens,
)
"""What a conversation and its character, joined by `CHARACTER`, say of its prompts: for `next_prompt`."""

CHARACTER: Final = characters.c.id == sa.func.coalesce(conversations.c.character_id, DEFAULT_CHARACTER_ID)

# A failed or unfinished reply is no answer.
_WAS_SAID: Final = sa.and_(sa.text("said.state IN ('stored', 'complete', 'stopped')"), _said.c.content != "")

_SOURCES: Final = Prepared(
    sa.select(messages.c.id, _question.c.content, *SETTINGS)
    .join(_question, _question.c.id == messages.c.reply_to)
    .join(conversations, conversations.c.id == messages.c.conversation_id)
    .join(characters, CHARACTER)
    .where(is_one_of(messages.c.id))
)

# By position, never by time, and bounded on the index: the 10,000th message costs what the 100th does.
_HISTORY: Final = Prepared(
    sa.select(messages.c.id, _said.c.position, _said.c.generation, _said.c.role, _said.c.content)
    .join(
        _said,
        sa.and_(
            _said.c.conversation_id == messages.c.conversation_id,
            _said.c.position < messages.c.position,
            _said.c.position >= messages.c.position - HISTORY_LIMIT // 2,
        ),
    )
    .where(is_one_of(messages.c.id), _WAS_SAID)
)

NEXT_HISTORY: Final = (
    sa.select(json_rows(_said.c.position, _said.c.generation, _said.c.role, _said.c.content))
    .where(
        _said.c.conversation_id == conversations.c.id,
        _said.c.position < conversations.c.next_position,
        _said.c.position >= conversations.c.next_position - HISTORY_LIMIT // 2,
        _WAS_SAID,
    )
    .correlate(conversations)
    .scalar_subquery()
)
"""The same of a conversation's next message, which is not stored yet, as one column: for `next_prompt`."""


def read_prompts(conn: Connection, reply_ids: Sequence[str]) -> dict[str, PromptSource]:
    """Return what to ask for each of these replies."""
    if not reply_ids:
        return {}
    said: dict[str, list[Sequence[Any]]] = {}
    for reply_id, *turn in _HISTORY.rows(conn, {"ids": reply_ids}):
        said.setdefault(reply_id, []).append(turn)
    rows = _SOURCES.rows(conn, {"ids": reply_ids})
    return {reply_id: _source(settings, said.get(reply_id, []), content) for reply_id, content, *settings in rows}


def next_prompt(settings: Sequence[Any], history: Any, content: str) -> PromptSource:
    """Return what to ask for the answer to a conversation's next message.

    Args:
        settings: the columns `SETTINGS` of the conversation.
        history: its column `NEXT_HISTORY`.
        content: the message.
    """
    return _source(settings, read_json(history) or [], content)


def _source(settings_of: Sequence[Any], said: Sequence[Sequence[Any]], content: str) -> PromptSource:
    settings_json, system_prompt, model, temperature, max_tokens = settings_of
    settings = read_json(settings_json)
    return PromptSource(
        system_prompt=settings.get("system_prompt") or system_prompt,
        model=settings.get("model") or model,
        temperature=_first(settings.get("temperature"), temperature),
        max_tokens=_first(settings.get("max_tokens"), max_tokens),
        history=_history(said),
        content=content,
    )


def _history(said: Sequence[Sequence[Any]]) -> list[HistoryTurn]:
    """Order what was said; of several versions of an answer the one of the highest generation stands."""
    standing = {(position, role): (role, text) for position, _, role, text in sorted(said, key=_place)}
    return [HistoryTurn(role, text) for role, text in standing.values()]


def _place(turn: Sequence[Any]) -> tuple[int, int]:
    return turn[0], turn[1]


def _first(setting: Any, default: Any) -> Any:
    return default if setting is None else setting
