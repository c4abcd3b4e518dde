"""Which partition a key goes to: the same that Kafka's clients choose, so that it is known before a record is sent."""

from __future__ import annotations

from typing import Final

_SEED: Final = 0x9747B28C
_M: Final = 0x5BD1E995
_MASK: Final = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """Return Austin Appleby's MurmurHash2 of 32 bits, with the seed of Kafka's Java client. Takes microseconds."""
    length = len(data)
    whole = length & ~3
    value = _SEED ^ length
    for start in range(0, whole, 4):
        k = int.from_bytes(data[start : start + 4], "little") * _M & _MASK
        value = (value * _M & _MASK) ^ ((k ^ k >> 24) * _M & _MASK)
    if whole < length:
        value = (value ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    value = (value ^ value >> 13) * _M & _MASK
    return value ^ value >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """Return the number of a key's partition, as librdkafka's and Java's `murmur2` partitioners choose it."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
