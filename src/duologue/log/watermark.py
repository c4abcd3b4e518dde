"""How far a partition is done when its records finish out of order."""

from __future__ import annotations

from collections import deque


class Watermark:
    """One partition's offsets between reading and commit.

    It holds only what was read above the watermark, so its state is as large as the work under way.
    """

    def __init__(self) -> None:
        self._read: deque[int] = deque()
        self._unfinished: set[int] = set()
        self._first: int | None = None
        self._last = -1
        self._mark: int | None = None
        self._committed: int | None = None

    def __len__(self) -> int:
        """Return how many offsets were read and are not below the watermark."""
        return len(self._read)

    @property
    def committable(self) -> int | None:
        """The offset after the highest one up to which all are done; None if that is committed already."""
        return None if self._mark == self._committed else self._mark

    def read(self, offset: int) -> None:
        """Note that an offset was read. Offsets grow, perhaps with gaps.

        Raises:
            ValueError: it is not above the last one.
        """
        if offset <= self._last:
            raise ValueError(f"offset {offset} was read after {self._last}")
        if self._first is None:
            self._first = offset
        self._last = offset
        self._read.append(offset)
        self._unfinished.add(offset)

    def done(self, offset: int) -> None:
        """Note that the work of an offset is done. Saying it again changes nothing.

        Raises:
            ValueError: it was not read.
        """
        if offset not in self._unfinished:
            self._check_known(offset)
            return
        self._unfinished.remove(offset)
        while self._read and self._read[0] not in self._unfinished:
            self._mark = self._read.popleft() + 1

    def committed(self, offset: int) -> None:
        """Note a commit: `committable` as it was when the commit began, since it may have moved meanwhile."""
        self._committed = offset

    def _check_known(self, offset: int) -> None:
        below = self._first is not None and self._mark is not None and self._first <= offset < self._mark
        if not below and offset not in self._read:
            raise ValueError(f"offset {offset} was not read")
