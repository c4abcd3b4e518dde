"""Which partition a key goes to, by the test vectors of Kafka's Java client (UtilsTest.testMurmur2)."""

from __future__ import annotations

import pytest

from duologue.log.partitioner import murmur2, partition_of


@pytest.mark.parametrize(
    ("key", "hash_"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    ],
)
def test_murmur2_of_kafkas_test_vectors_is_kafkas(key: bytes, hash_: int) -> None:
    assert murmur2(key) == hash_ % 2**32
    assert partition_of(key, 12) == (hash_ & 0x7FFFFFFF) % 12
