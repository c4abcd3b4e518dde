"""Durations counted in the buckets of an HDR histogram, so that percentiles of any number of them cost no memory.

The layout is that of HdrHistogram (http://hdrhistogram.org) with three significant digits over whole microseconds:
up to 2,047 µs each has a bucket of its own, beyond that every doubling is divided into 1,024. So a percentile is never
below the true one, and above it by less than 1/1,024 of it, or 1 µs. The package of that name is not used: it is
compiled, has no wheel for Linux on ARM, and would bring setuptools into every installation.
"""

from __future__ import annotations

import math
from typing import Final

_BITS: Final = 11
_HALF: Final = 1 << (_BITS - 1)


class Histogram:
    """Counts durations; `record` costs less than a microsecond."""

    __slots__ = ("_counts", "count", "longest")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        """How many were recorded."""
        self.longest = 0.0
        """The longest of them in seconds, exactly."""

    def record(self, seconds: float) -> None:
        """Count one duration; a negative one counts as 0."""
        value = int(seconds * 1e6) if seconds > 0 else 0
        shift = value.bit_length() - _BITS
        bucket = value if shift <= 0 else shift * _HALF + (value >> shift)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self.count += 1
        self.longest = max(self.longest, seconds)

    def percentile(self, share: float) -> float:
        """Return the seconds that `share` (0 to 1) of all durations do not exceed; 0 if there are none."""
        wanted = max(1, math.ceil(share * self.count - 1e-9))
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= wanted:
                return min(_highest(bucket) / 1e6, self.longest)
        return 0.0

    def add(self, other: Histogram) -> None:
        """Count all that another has counted."""
        for bucket, count in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + count
        self.count += other.count
        self.longest = max(self.longest, other.longest)


def _highest(bucket: int) -> int:
    """Return the end of a bucket in microseconds: durations are cut to whole ones below it."""
    if bucket < 2 * _HALF:
        return bucket + 1
    shift = bucket // _HALF - 1
    return ((bucket - shift * _HALF) + 1) << shift
