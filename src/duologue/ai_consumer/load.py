"""What an ai-consumer says of its load, once a second, to those who accept messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from duologue.ai_consumer.dispatcher import Dispatcher
from duologue.ai_consumer.request import Request
from duologue.ai_consumer.service_times import ServiceTimes
from duologue.delivery.load import LoadBoard, LoadReport, keep_current
from duologue.domain.errors import DuologueError
from duologue.log.intake import Intake
from duologue.observability.metrics import EXPECTED_WAIT_SECONDS, UNREAD_RECORDS

_LOOK_SECONDS: Final = 5.0


class LoadFigures:
    """Works out how a message that comes now would fare, and writes it where the edge reads it."""

    def __init__(
        self,
        board: LoadBoard,
        *,
        consumer: str,
        dispatcher: Dispatcher[Request],
        times: ServiceTimes,
        intake: Intake,
        arriving: Callable[[], int],
        slots: int,
    ) -> None:
        """Report to `board`.

        Args:
            board: where the figures go.
            consumer: this worker's name.
            dispatcher: what waits here.
            times: how long replies take.
            intake: what is on the log behind that.
            arriving: how many records are read and not in the dispatcher yet.
            slots: replies at once.
        """
        self._board = board
        self._consumer = consumer
        self._dispatcher = dispatcher
        self._times = times
        self._intake = intake
        self._arriving = arriving
        self._slots = slots
        self._unread = 0
        self._look_at = 0.0

    async def run(self) -> None:
        """Report until cancelled. What was said last stands until others report on the same partitions."""
        await keep_current(self._report, failed="load_not_reported")

    async def _report(self) -> None:
        await self._look_at_log()
        report = self.figures(asyncio.get_running_loop().time())
        UNREAD_RECORDS.set(report.unread)
        EXPECTED_WAIT_SECONDS.set(report.wait_seconds)
        if report.partitions:
            await self._board.report(report)

    async def _look_at_log(self) -> None:
        """Count what is not read yet: always if reading is held up, else now and then, since the log is asked.

        While the log does not answer, the last count stands.
        """
        now = asyncio.get_running_loop().time()
        if not (self._unread or self._arriving() or self._intake.owed) and now < self._look_at:
            return
        self._look_at = now + _LOOK_SECONDS
        with suppress(DuologueError):
            self._unread = await self._intake.unread()

    def figures(self, now: float) -> LoadReport:
        """Return the figures of this moment, with what was last known of the log.

        What is not read yet is taken as one message of many users each: nobody knows better. If reading is paused, so
        much has to be done first that it goes on.
        """
        behind = self._unread + self._arriving()
        behind += self._intake.owed if behind else 0
        waiting = self._dispatcher.waiting
        mean = self._times.mean(now)
        each = mean / self._slots
        free = self._slots - self._dispatcher.running
        return LoadReport(
            consumer=self._consumer,
            partitions=sorted(holding.partition.number for holding in self._intake.holdings),
            waiting=waiting + self._arriving(),
            unread=self._unread,
            slots=self._slots,
            running=self._dispatcher.running,
            wait_seconds=round(max(0, self._dispatcher.newcomer_place + behind - free) * each, 3),
            backlog_seconds=round(max(0, waiting + 1 + behind - free) * each, 3),
            replies_per_second=round(1 / each, 3),
        )
