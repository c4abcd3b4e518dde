"""Identities: of a user, of a message, of rows."""

from __future__ import annotations

import re
import uuid
from typing import Final, NamedTuple

import uuid_utils

DEFAULT_TENANT: Final = "default"

USER_ID_PATTERN: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")

_MESSAGE_NAMESPACE: Final = uuid.UUID("6f4df0f5-2c62-5a8e-9c1e-6d7e0f6b8a11")
_GUEST_NAMESPACE: Final = uuid.UUID("d1b3a8a4-8e3c-5d27-9a51-3f0c7b6e4290")


class UserKey(NamedTuple):
    """A user as the wire, the log and Redis know them. `uid`, their row in the store, is a thing of its own."""

    tenant: str
    user_id: str


def new_id() -> str:
    """Return a fresh UUIDv7 (RFC 9562), whose text sorts by its time of making."""
    return str(uuid_utils.uuid7())


def message_id(*, tenant: str, uid: str, client_id: str, content: str, conversation_id: str | None) -> str:
    """Derive the id of a user's message: the same frame sent again is the same message.

    Args:
        tenant: the user's tenant.
        uid: the user's row id, so that a later user of the same name gets other ids.
        client_id: the frame's own `id`.
        content: the text.
        conversation_id: the conversation that the frame itself names, or None; never the connection's.

    Returns:
        A UUIDv5 (RFC 9562) over these. Each part is preceded by its length, so that no two sets of parts share a name.
    """
    return _derived(_MESSAGE_NAMESPACE, tenant, uid, client_id, content, conversation_id or "")


def guest_uid(user: UserKey, request_key: str) -> str:
    """Derive the row id of a guest from the secret key of the request that makes them: a repeat finds its own guest.

    Returns:
        A UUIDv5 as above; who knows it does not know the key.
    """
    return _derived(_GUEST_NAMESPACE, *user, request_key)


def _derived(namespace: uuid.UUID, *parts: str) -> str:
    return str(uuid.uuid5(namespace, "".join(f"{len(part)}:{part}" for part in parts)))


def is_valid_user_id(user_id: str) -> bool:
    """Tell whether `user_id` may name a user on the wire."""
    return USER_ID_PATTERN.fullmatch(user_id) is not None
