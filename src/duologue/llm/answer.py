"""A streamed answer in OpenAI's wire format, as a state machine: bytes in, text and the end out, no I/O.

The stream is server-sent events, one line `data: {…}` a piece, closed by `data: [DONE]`. It is read by hand and only
the fields that are needed are decoded: that costs a few microseconds a piece, and there are many.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, Final

import msgspec

from duologue.domain.records import Usage
from duologue.llm.failures import error_in, failure_of_error, temporary
from duologue.llm.port import Finished, ModelTemporaryError

MAX_LINE_BYTES: Final = 1024 * 1024
MAX_ANSWER_CHARACTERS: Final = 200_000
"""A longer answer ends there with `length`: it could not travel in one record of the log."""

_MAX_PREAMBLE_BYTES: Final = 64 * 1024
_REPLACEMENT: Final = "\ufffd"
_KEPT_REASONS: Final = frozenset({"stop", "length", "content_filter"})


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: Any = None


class _Piece(msgspec.Struct):
    """One event. `Any` where providers differ: a surprise in a field that matters little must not break the answer."""

    choices: list[_Choice] | None = None
    model: Any = None
    usage: Any = None
    error: Any = None


_decoder: Final = msgspec.json.Decoder(_Piece)


class _GarbageError(ModelTemporaryError):
    def __init__(self) -> None:
        super().__init__("the language model sent what cannot be read", cause="garbage")


class AnswerReader:
    """Reads one answer: `feed` it what the provider sends until it closes or `done` is true, then `end`, then `finish`.

    `done` is true once nothing more needs reading, `has_reason` once the model has said why it ended (its text is
    whole, `usage` may follow), `alive` if the last bytes brought a token, be it of reasoning that is not shown.
    """

    __slots__ = (
        "_characters",
        "_line",
        "_model",
        "_preamble",
        "_reason",
        "_seen_event",
        "_text",
        "_usage",
        "alive",
        "done",
    )

    def __init__(self, model: str) -> None:
        self._model = model
        self._line = b""
        self._preamble = b""
        self._reason: str | None = None
        self._seen_event = False
        self._characters = 0
        self._text = _TextCleaner()
        self._usage: Usage | None = None
        self.alive = False
        self.done = False

    @property
    def has_reason(self) -> bool:
        return self._reason is not None

    def feed(self, data: bytes) -> str:
        """Take bytes as they came; return the text in them, often empty.

        Raises:
            ModelTemporaryError: they are not such a stream, or hold an error.
            ModelRefused: they hold an error that no further try will change.
        """
        self.alive = False
        if not self._seen_event and len(self._preamble) < _MAX_PREAMBLE_BYTES:
            self._preamble += data
        lines = (self._line + data).split(b"\n")
        self._line = lines.pop()
        texts = [text for line in lines if line.startswith(b"data:") and (text := self._event(line[5:].strip()))]
        if len(self._line) > MAX_LINE_BYTES:
            raise temporary("line_too_long", "the language model sent a line that is too long")
        return self._bounded("".join(texts)) if texts else ""

    def end(self) -> str:
        """Take the end of the bytes; return the text that was still held. Raises as `feed`."""
        line, self._line = self._line, b""
        text = ""
        if line.startswith(b"data:"):
            with suppress(_GarbageError):  # half a line: then the answer was broken off, as `finish` finds
                text = self._event(line[5:].strip())
        return self._bounded(text + self._text.rest())

    def finish(self) -> Finished:
        """Return how the answer ended.

        Raises:
            ModelTemporaryError: it broke off, was empty, or was no stream at all.
            ModelRefused: it was an error that no further try will change.
        """
        if not self._seen_event:
            self._raise_preamble()
        if not (self.done or self.has_reason):
            raise temporary("stream_cut", "the language model broke off its answer")
        reason = self._reason if self._reason in _KEPT_REASONS else "stop"
        if not self._characters and reason != "content_filter":
            raise temporary("empty_stream", "the language model gave an empty answer")
        return Finished(reason or "stop", self._model, self._usage)

    def _event(self, payload: bytes) -> str:
        self._seen_event = True
        if payload == b"[DONE]":
            self.done = True
        if self.done or not payload:
            return ""
        try:
            return self._take(_decode(payload))
        except msgspec.MsgspecError as error:
            if self.has_reason:  # the text is whole; what follows it may be anything
                return ""
            raise _GarbageError from error

    def _take(self, piece: _Piece) -> str:
        if piece.error and not self.has_reason:
            raise failure_of_error(piece.error, model=self._model)
        if piece.usage is not None:
            self._usage = _usage_of(piece.usage) or self._usage
        if not piece.choices:
            return ""
        if isinstance(piece.model, str) and piece.model:
            self._model = piece.model
        choice = piece.choices[0]
        if choice.finish_reason:
            self._reason = str(choice.finish_reason)
        return self._take_delta(choice.delta) if choice.delta is not None else ""

    def _take_delta(self, delta: _Delta) -> str:
        content = delta.content
        if content:
            self.alive = True
            return self._text.clean(content if isinstance(content, str) else _text_of_parts(content))
        if delta.reasoning_content or delta.reasoning:
            self.alive = True
        return ""

    def _bounded(self, text: str) -> str:
        room = MAX_ANSWER_CHARACTERS - self._characters
        if len(text) > room:
            text, self._reason, self.done = text[:room], "length", True
        self._characters += len(text)
        return text

    def _raise_preamble(self) -> None:
        """Say what a body without any event was: an error in JSON, a page, nothing, or something else."""
        body = self._preamble.strip()
        if error := error_in(body):
            raise failure_of_error(error, model=self._model)
        if not body:
            raise temporary("empty_stream", "the language model gave an empty answer")
        if body.startswith(b"<"):
            raise temporary("html", "something else than the language model answered with a page")
        raise _GarbageError


class _TextCleaner:
    """Makes text that can be stored and sent: no NUL, no lone surrogate, though a pair may come in two pieces."""

    __slots__ = ("_high",)

    def __init__(self) -> None:
        self._high = ""

    def clean(self, text: str) -> str:
        if "\0" in text:
            text = text.replace("\0", _REPLACEMENT)
        if text.isascii() and not self._high:
            return text
        try:
            text.encode()
        except UnicodeEncodeError:
            return self._repair(text)
        if self._high:
            text, self._high = _REPLACEMENT + text, ""
        return text

    def rest(self) -> str:
        """Return what was held for a second half that never came."""
        held, self._high = self._high, ""
        return _REPLACEMENT if held else ""

    def _repair(self, text: str) -> str:
        text, self._high = self._high + text, ""
        if "\ud800" <= text[-1] <= "\udbff":
            text, self._high = text[:-1], text[-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _decode(payload: bytes) -> _Piece:
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _decode_leniently(payload, error)


def _decode_leniently(payload: bytes, error: Exception) -> _Piece:
    """Decode what msgspec refuses but others send: lone surrogates, bytes that are not UTF-8."""
    try:
        return msgspec.convert(json.loads(payload.decode(errors="replace")), _Piece)
    except (ValueError, RecursionError):
        raise msgspec.DecodeError(str(error)) from error


def _text_of_parts(content: object) -> str:
    """Return the text of a content given as typed parts, as some providers do."""
    if not isinstance(content, list):
        return ""
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def _usage_of(usage: object) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion, total = (
        _count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    )
    return Usage(prompt, completion, total or prompt + completion)


def _count(value: object) -> int:
    return int(value) if isinstance(value, int | float) and 0 <= value < 1e12 else 0
