"""Logs: one JSON object a line, or coloured lines for people on a terminal; correlation ids on both."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import msgspec
import structlog

Format = Literal["auto", "json", "console"]


def configure_logging(*, level: str, form: Format, server_id: str) -> None:
    """Set up logging for this process; call once, from the composition root.

    Args:
        level: the least level that is logged.
        form: `json`, `console`, or `auto`, which is for people if standard error is a terminal.
        server_id: stands in every JSON line.
    """
    for_people = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderer: list[Any]
    if for_people:
        renderer = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    else:
        shared.insert(0, _named(server_id))
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_to_json)]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    _route_standard_logging(level, [*shared], renderer)


def _to_json(event: Any, **_: Any) -> str:
    """Encode an event; what is no JSON stands there as `repr`. msgspec takes a tenth of the standard library's time."""
    return msgspec.json.encode(event, enc_hook=repr).decode()


def _named(server_id: str) -> Any:
    def add(_: object, __: str, event: dict[str, Any]) -> dict[str, Any]:
        event["server_id"] = server_id
        return event

    return add


def _route_standard_logging(level: str, shared: list[Any], renderer: list[Any]) -> None:
    """Give the libraries' own log lines the same form; theirs are of interest from warnings up."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        foreign_pre_chain=shared,
    )
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
