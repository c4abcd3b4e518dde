"""The logs that the contract is held against, each on an engine of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.support.logs import LogUnderTest
from tests.support.valkey import ValkeyServer

from duologue.log.valkey_lock import LockTimes
from duologue.log.valkey_streams import open_streams_log

_TIMEOUT_SECONDS = 1.0
_LOCK_TIMES = LockTimes(valid_seconds=2.0, renew_seconds=0.2, wait_seconds=0.5)


def _streams(request: pytest.FixtureRequest) -> LogUnderTest:
    server: ValkeyServer = request.getfixturevalue("valkey_server")
    return LogUnderTest(
        open=lambda: open_streams_log(
            server.url, takeover=False, timeout_seconds=_TIMEOUT_SECONDS, lock_times=_LOCK_TIMES
        ),
        open_successor=lambda: open_streams_log(
            server.url, takeover=True, timeout_seconds=_TIMEOUT_SECONDS, lock_times=_LOCK_TIMES
        ),
        engine=server,
        append_timeout_seconds=_TIMEOUT_SECONDS,
        one_consumer_only=True,
    )


_ADAPTERS: dict[str, Callable[[pytest.FixtureRequest], LogUnderTest]] = {"streams": _streams}


@pytest.fixture(params=list(_ADAPTERS))
def logs(request: pytest.FixtureRequest) -> LogUnderTest:
    """The adapter under test, on a running engine that holds nothing yet."""
    return _ADAPTERS[request.param](request)
