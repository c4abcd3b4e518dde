"""A language model as the ai-consumer sees it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Literal, Protocol, TypeAlias

import msgspec

from duologue.domain.errors import Permanent, Retryable
from duologue.domain.records import Usage

Role = Literal["system", "user", "assistant"]


class PromptMessage(msgspec.Struct, frozen=True):
    """One turn of a prompt, in the form that every provider takes."""

    role: Role
    content: str


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is asked. `model` None means the provider's configured one. `user` tells users apart to a
    provider that wants that, never who they are."""

    messages: Sequence[PromptMessage]
    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    user: str | None = None
    correlation_id: str = ""


class Chunk(msgspec.Struct, frozen=True):
    """A piece of the answer's text, never empty."""

    text: str


class Finished(msgspec.Struct, frozen=True):
    """The end of an answer, the last event of a stream. `finish_reason` is `stop`, `length` or `content_filter`."""

    finish_reason: str
    model: str
    usage: Usage | None = None


ModelEvent: TypeAlias = Chunk | Finished


class ModelTemporaryError(Retryable):
    """This try failed and another may succeed: 408, 409, 429, 5xx, a time-out, a broken or empty stream.

    `cause` is a short code for logs and metrics, as `timeout_first_token` or `http_503`.
    """

    def __init__(self, message: str, *, cause: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self.cause = cause


class ModelRefused(Permanent):
    """The provider refused the request (a wrong key, an unknown model, a bad request): no try will succeed.

    The message is fit for the user: it holds no key and no address.
    """

    def __init__(self, message: str, *, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


class KeyRefused(ModelRefused):
    """The provider refuses the key, or what it stands for is spent: another provider may answer."""


class ModelUnknown(ModelRefused):
    """The provider has no such model: another model may answer."""


class PromptTooLong(ModelRefused):
    """The prompt is longer than the model takes: one with less history may succeed."""


ModelFailure: TypeAlias = ModelTemporaryError | ModelRefused
"""How a try fails."""


class LanguageModel(Protocol):
    """One provider."""

    @property
    def name(self) -> str:
        """The model's name, for people."""
        ...

    @property
    def provider(self) -> str:
        """Who answers, for logs and metrics: a host, never a key."""
        ...

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Make one try: yield chunks as they come, then `Finished`. Closing the iterator ends the request at once.

        Raises:
            ModelTemporaryError: the try failed, before or after its first chunk.
            ModelRefused: no try will succeed.
        """
        ...

    async def check(self) -> None:
        """Return if the model can be asked now.

        Raises:
            ModelTemporaryError: not now, as while it loads; the message says what it is doing.
            ModelRefused: never, as with a wrong key.
        """
        ...
