"""A conversation as the turns that a model is sent, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from duologue.llm.port import PromptMessage, Role

_TURN_TOKENS: Final = 4
"""What a provider adds around each turn (role and separators)."""


class Turn(Protocol):
    """One earlier turn: a user's message or its answer."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...


def estimated_tokens(text: str) -> int:
    """Return about how many tokens a turn of this text takes, without a tokenizer.

    Byte-pair vocabularies average four bytes of UTF-8 a token in English; other scripts have more bytes a character
    and fewer characters a token, so bytes are the better measure. It errs by a third at most on ordinary text.
    """
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return max(1, size // 4) + _TURN_TOKENS


def build_prompt(
    *, system_prompt: str | None, history: Sequence[Turn], content: str, max_history_tokens: int
) -> list[PromptMessage]:
    """Return the prompt: the system's turn, as much of the latest history as the budget allows, the message itself.

    Args:
        system_prompt: the character's; always kept, None or empty for none.
        history: earlier turns, oldest first.
        content: the message to answer; always kept.
        max_history_tokens: for the history alone; what is older than the first turn that does not fit is left out.

    Returns:
        Turns in the order of the conversation. What follows the system's turn begins with a user's.
    """
    kept = _newest(history, max_history_tokens)
    while kept and kept[-1].role != "user":
        kept.pop()
    prompt = [PromptMessage("system", system_prompt)] if system_prompt else []
    prompt += [PromptMessage(_role(turn), turn.content) for turn in reversed(kept)]
    prompt.append(PromptMessage("user", content))
    return prompt


def _newest(history: Sequence[Turn], max_tokens: int) -> list[Turn]:
    """Return the latest turns that fit, newest first."""
    kept: list[Turn] = []
    for turn in reversed(history):
        max_tokens -= estimated_tokens(turn.content)
        if max_tokens < 0:
            break
        kept.append(turn)
    return kept


def _role(turn: Turn) -> Role:
    return "assistant" if turn.role == "assistant" else "user"
