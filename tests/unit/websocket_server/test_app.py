"""What a handshake says: token, user, character, conversation, and where to go on."""

from __future__ import annotations

from typing import Any

import pytest

from duologue.protocol.session import Handshake
from duologue.websocket_server.app import handshake_of


def _scope(query: str = "", headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return {"query_string": query.encode(), "headers": raw, "subprotocols": [], "path_params": {}, **more}


def test_handshake_takes_everything_from_the_query() -> None:
    query = "token=t&userid=ann%40home&conversation_id=c&last_event_id=e:1&other=x"
    assert handshake_of(_scope(query)) == Handshake(
        token="t",
        user_id="ann@home",
        conversation_id="c",
        last_event_id="e:1",
    )


def test_handshake_takes_empty_for_absent() -> None:
    assert handshake_of(_scope("token=&userid=&conversation_id=&last_event_id=")) == Handshake()


def test_handshake_takes_the_character_from_the_path() -> None:
    assert handshake_of(_scope(path_params={"character_id": "creative"})).character == "creative"


@pytest.mark.parametrize(
    ("headers", "subprotocols", "token"),
    [
        ({"authorization": "Bearer h"}, [], "h"),
        ({"authorization": "bearer h"}, [], "h"),
        ({"authorization": "Basic h"}, [], "q"),
        ({}, ["bearer", "s"], "s"),
        ({}, ["duologue.v1", "bearer", "s"], "s"),
        ({}, ["bearer"], "q"),
        ({"authorization": "Bearer h"}, ["bearer", "s"], "h"),
        ({}, [], "q"),
    ],
)
def test_handshake_prefers_header_over_subprotocol_over_query(
    headers: dict[str, str], subprotocols: list[str], token: str
) -> None:
    assert handshake_of(_scope("token=q", headers, subprotocols=subprotocols)).token == token
