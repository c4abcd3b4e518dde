"""Users: rows with an id of their own, `uid`. A deleted one stays as a row without content, so that its tokens fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.domain.ids import UserKey, guest_uid, new_id
from duologue.store.dialect import insert_missing
from duologue.store.prepared import is_one_of
from duologue.store.schema import users

UserKind: TypeAlias = Literal["guest", "account", "external"]


class UserRow(msgspec.Struct, frozen=True, kw_only=True):
    """A user. `user_id` is the name on the wire, `uid` the row's id."""

    uid: str
    tenant: str
    user_id: str
    kind: UserKind
    name: str
    created_at: int
    updated_at: int
    deleted_at: int | None = None

    @property
    def key(self) -> UserKey:
        return UserKey(self.tenant, self.user_id)


_COLUMNS: Final = (
    users.c.id.label("uid"),
    users.c.tenant,
    users.c.userid.label("user_id"),
    users.c.kind,
    users.c.name,
    users.c.created_at,
    users.c.updated_at,
    users.c.deleted_at,
)
_BY_NAME: Final = sa.select(*_COLUMNS).where(
    users.c.tenant == sa.bindparam("tenant"), users.c.userid == sa.bindparam("user_id")
)
_FIND: Final = _BY_NAME.where(users.c.deleted_at.is_(None))
_FIND_DELETED: Final = _BY_NAME.where(users.c.deleted_at.is_not(None)).limit(1)
_DELETED: Final = sa.select(users.c.id).where(is_one_of(users.c.id), users.c.deleted_at.is_not(None))
_BY_UID: Final = sa.select(*_COLUMNS).where(users.c.id == sa.bindparam("uid"))


def find_user(conn: Connection, tenant: str, user_id: str) -> UserRow | None:
    """Return the user of that name, None if there is none or only a deleted one."""
    return _one(conn, _FIND, tenant=tenant, user_id=user_id)


def user_by_id(conn: Connection, uid: str) -> UserRow | None:
    """Return the user with that row id, a deleted one with `deleted_at`, None if there never was one."""
    return _one(conn, _BY_UID, uid=uid)


def is_deleted(conn: Connection, uid: str) -> bool:
    """Tell whether the user with that row id was deleted."""
    user = user_by_id(conn, uid)
    return user is not None and user.deleted_at is not None


def deleted_users(conn: Connection, uids: Sequence[str]) -> set[str]:
    """Return which of these users were deleted."""
    return set(conn.scalars(_DELETED, {"ids": uids})) if uids else set()


def ensure_user(conn: Connection, tenant: str, user_id: str, kind: UserKind, now: int) -> UserRow | None:
    """Return the user of that name, made now if the name was never seen.

    Returns:
        None if the user of that name was deleted: a token of a product's own backend does not bring it back.
    """
    user = find_user(conn, tenant, user_id)
    if user is not None or _one(conn, _FIND_DELETED, tenant=tenant, user_id=user_id) is not None:
        return user
    return _insert(conn, tenant, user_id, kind, now)


def create_guest(
    conn: Connection, tenant: str, user_id: str, now: int, *, request_key: str | None = None
) -> UserRow | None:
    """Make a guest of that name, also after an earlier user of that name was deleted. None if the name is taken.

    Args:
        conn: in a transaction.
        tenant: the guest's.
        user_id: the name.
        now: milliseconds since the Unix epoch.
        request_key: what only the caller knows. The guest whom the same key made already is returned again.
    """
    uid = new_id() if request_key is None else guest_uid(UserKey(tenant, user_id), request_key)
    found = find_user(conn, tenant, user_id)
    if found is not None:
        return found if found.uid == uid and found.kind == "guest" else None
    if request_key is not None and is_deleted(conn, uid):
        uid = new_id()
    user = _insert(conn, tenant, user_id, "guest", now, uid=uid)
    return user if user is not None and user.uid == uid else None


def _insert(
    conn: Connection, tenant: str, user_id: str, kind: UserKind, now: int, *, uid: str | None = None
) -> UserRow | None:
    """Insert and read back: of two that insert one name at once, both get the row of the first."""
    row = {
        "id": uid or new_id(),
        "tenant": tenant,
        "userid": user_id,
        "kind": kind,
        "name": user_id,
        "created_at": now,
        "updated_at": now,
    }
    insert_missing(conn, users, [row])
    return find_user(conn, tenant, user_id)


def _one(conn: Connection, statement: sa.Select[Any], **values: object) -> UserRow | None:
    row = conn.execute(statement, values).mappings().first()
    return None if row is None else UserRow(**row)
