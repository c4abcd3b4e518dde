"""What a server says, as a sentence for people."""

from __future__ import annotations

from duologue.client.conversation_view import Exchange, Frame


def sentence(text: str) -> str:
    """Return `text` with a capital letter at its start and a mark at its end."""
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def error_in_words(frame: Frame) -> str:
    """Return what an `error` frame says."""
    return sentence(str(frame.get("message") or frame.get("code") or "something went wrong"))


def failure_in_words(exchange: Exchange) -> str:
    """Return why a reply failed."""
    reason = (exchange.error or {}).get("message")
    return f"The reply failed: {reason}" if reason else "The reply failed."
