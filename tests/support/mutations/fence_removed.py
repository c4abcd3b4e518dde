"""Whoever completes a reply first has it, whatever its attempt, and a worker that has lost it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from duologue.ai_consumer.reply import Reply
from duologue.ai_consumer.worker import AiConsumer
from duologue.log.committer import Holding
from duologue.store import outcomes
from duologue.store.outcomes import Completion


def _complete_any(conn: Connection, completions: Sequence[Completion], now: int) -> set[str]:
    open_ones = {row[0] for row in outcomes._HELD.rows(conn, {"ids": [each.reply_id for each in completions]})}
    holding = [each for each in completions if each.reply_id in open_ones]
    if holding:
        outcomes._COMPLETE.run(conn, [outcomes._values(each) | {"now": now} for each in holding])
    return {each.reply_id for each in holding}


def _complete_any_and_mark(
    conn: Connection, completions: Sequence[Completion], published: Sequence[str], now: int
) -> set[str]:
    outcomes.mark_published(conn, published)
    return _complete_any(conn, completions, now)


def _ignore(*_: Any) -> None:
    return


def _forget_only(self: AiConsumer, holdings: Sequence[Holding]) -> None:
    for request in self._drop(holdings):
        self._leave(request)


outcomes._complete = _complete_any
outcomes._complete_and_mark = _complete_any_and_mark
Reply._on_fenced = _ignore  # type: ignore[assignment, method-assign]
AiConsumer.lost = _forget_only  # type: ignore[method-assign]
