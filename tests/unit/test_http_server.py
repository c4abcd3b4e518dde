"""The HTTP server's settings that the protocol promises."""

from __future__ import annotations

from fastapi import FastAPI

from duologue.config import Settings
from duologue.runner import http_server
from duologue.websocket_server.transport import SocketProtocol


def test_http_server_pings_and_bounds_frames_as_the_protocol_says() -> None:
    config = http_server(FastAPI(), Settings(max_frame_bytes=2048), SocketProtocol).config
    assert (config.ws_ping_interval, config.ws_ping_timeout) == (25.0, 10.0)
    assert config.ws_max_size == 2048
    assert config.ws_per_message_deflate is False
