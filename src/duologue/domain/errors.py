"""Errors, named by what the caller does next.

`Retryable`: the same call may succeed later. `Permanent`: it never will. `Rejected`: the request itself is refused,
with a code of the protocol that tells the client why.
"""

from __future__ import annotations


class DuologueError(Exception):
    """Base of every error that this program raises on purpose."""


class Retryable(DuologueError):
    """The same call may succeed later: wait and repeat it.

    `retry_after_seconds` is a hint, None when nothing better than a back-off is known.
    """

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Permanent(DuologueError):
    """The same call will fail again: report it, or dead-letter what caused it."""


class Rejected(DuologueError):
    """A request is refused; nothing was accepted. `code` is one of the protocol's error codes."""

    def __init__(self, code: str, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_seconds = retry_after_seconds


class LogUnavailable(Retryable):
    """The log cannot be reached or did not acknowledge in time: the record may or may not be on it."""


class RedisUnavailable(Retryable):
    """Redis cannot be reached, is loading, or has no memory left."""


class StoreUnavailable(Retryable):
    """The database cannot be reached."""


class OwnershipLost(Retryable):
    """This consumer no longer owns its partitions: another one does, or may soon."""


class ConsumerRefused(Permanent):
    """Another consumer owns this log, and it allows one only."""


class RecordUnreadable(Permanent):
    """A record on the log cannot be decoded, is of a newer version, or is too large."""


class StartRefused(Permanent):
    """The program cannot start as it is configured; the message says what to do."""
