from __future__ import annotations

from duologue.websocket_server.typing_notices import Allowance


def test_allowance_gives_a_burst_and_then_so_many_a_second() -> None:
    allowance = Allowance(3, 2.0)
    assert [allowance.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert not allowance.take(100.4)
    assert allowance.take(100.5)
    assert not allowance.take(100.6)


def test_allowance_saves_up_no_more_than_a_burst() -> None:
    allowance = Allowance(2, 1.0)
    allowance.take(10.0)
    assert [allowance.take(1000.0) for _ in range(3)] == [True, True, False]
