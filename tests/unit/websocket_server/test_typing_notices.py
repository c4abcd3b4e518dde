from __future__ import annotations

from duologue.websocket_server.typing_notices import TokenBucket


def test_bucket_gives_a_burst_and_then_so_many_a_second() -> None:
    bucket = TokenBucket(3, 2.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(100.4)
    assert bucket.take(100.5)
    assert not bucket.take(100.6)


def test_bucket_saves_up_no_more_than_a_burst() -> None:
    bucket = TokenBucket(2, 1.0)
    bucket.take(10.0)
    assert [bucket.take(1000.0) for _ in range(3)] == [True, True, False]
