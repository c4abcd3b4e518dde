"""The watermark: out-of-order work, contiguous commits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from duologue.log.watermark import Watermark


class WatermarkMachine(RuleBasedStateMachine):
    """Compares the watermark with a model that keeps every offset and its state."""

    def __init__(self) -> None:
        super().__init__()
        self.watermark = Watermark()
        self.finished: dict[int, bool] = {}
        self.commit: int | None = None

    @rule(gap=st.integers(min_value=0, max_value=3))
    def read(self, gap: int) -> None:
        offset = max(self.finished, default=-1) + 1 + gap
        self.watermark.read(offset)
        self.finished[offset] = False

    @precondition(lambda self: self.finished)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.finished)))  # perhaps for the second time
        self.watermark.done(offset)
        self.finished[offset] = True

    @precondition(lambda self: self.watermark.committable is not None)
    @rule()
    def committed(self) -> None:
        self.commit = self.watermark.committable
        assert self.commit is not None
        self.watermark.committed(self.commit)

    @invariant()
    def commits_what_is_done_without_a_hole(self) -> None:
        expected = None
        for offset, finished in self.finished.items():
            if not finished:
                break
            expected = offset + 1
        assert self.watermark.committable == (None if expected == self.commit else expected)

    @invariant()
    def holds_only_what_is_above_the_mark(self) -> None:
        offsets = list(self.finished)
        below = next((n for n, offset in enumerate(offsets) if not self.finished[offset]), len(offsets))
        assert len(self.watermark) == len(offsets) - below


TestWatermark = WatermarkMachine.TestCase


@given(st.permutations(range(50)))
def test_watermark_all_done_in_any_order_commits_the_end(order: list[int]) -> None:
    watermark = Watermark()
    for offset in range(50):
        watermark.read(offset)
    for offset in order:
        watermark.done(offset)
    assert watermark.committable == 50
    assert len(watermark) == 0


def test_watermark_nothing_done_has_nothing_to_commit() -> None:
    watermark = Watermark()
    assert watermark.committable is None
    watermark.read(7)
    assert watermark.committable is None


def test_watermark_moved_while_a_commit_ran_has_more_to_commit() -> None:
    watermark = Watermark()
    for offset in (1, 2):
        watermark.read(offset)
    watermark.done(1)
    begun = watermark.committable
    assert begun == 2
    watermark.done(2)
    watermark.committed(begun)
    assert watermark.committable == 3


@pytest.mark.parametrize("offset", [4, 7, 9, 12])
def test_watermark_done_of_an_offset_never_read_is_an_error(offset: int) -> None:
    watermark = Watermark()
    for known in (5, 6, 8, 10):
        watermark.read(known)
    watermark.done(5)
    with pytest.raises(ValueError, match=f"offset {offset} was not read"):
        watermark.done(offset)


@pytest.mark.parametrize("offset", [4, 5])
def test_watermark_read_that_does_not_grow_is_an_error(offset: int) -> None:
    watermark = Watermark()
    watermark.read(5)
    with pytest.raises(ValueError, match="after 5"):
        watermark.read(offset)
