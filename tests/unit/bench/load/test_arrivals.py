"""When messages leave: drawn beforehand, whatever comes of them."""

from __future__ import annotations

import itertools
import statistics
import time

import pytest

from duologue.bench.load.arrivals import arrivals, at_times
from duologue.bench.load.recorder import Recorder


def test_arrivals_of_the_same_seed_are_the_same_and_of_another_differ() -> None:
    assert list(arrivals(50, 10, 1)) == list(arrivals(50, 10, 1))
    assert list(arrivals(50, 10, 1)) != list(arrivals(50, 10, 2))


def test_arrivals_are_a_poisson_process() -> None:
    times = list(arrivals(100, 200, 1))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert statistics.mean(gaps) == pytest.approx(0.01, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.01, rel=0.05)  # as large as the mean: exponential
    assert times == sorted(times)
    assert times[-1] < 200


def test_arrivals_at_no_rate_are_none() -> None:
    assert not list(arrivals(0, 10, 1))


async def test_what_is_due_is_done_at_its_time_although_what_was_before_took_long() -> None:
    done: list[tuple[float, float]] = []

    def act(due: float) -> None:
        done.append((due, time.perf_counter()))
        if len(done) == 1:
            time.sleep(0.1)  # the generator is held up

    began = time.perf_counter()
    await at_times(iter([0.0, 0.02, 0.04, 0.15]), act)
    dues = [due - began for due, _ in done]
    assert dues == pytest.approx([0.0, 0.02, 0.04, 0.15], abs=0.02)  # as drawn: nobody waits for anybody
    assert [at - due > 0.05 for due, at in done][1:3] == [True, True]
    assert done[3][1] >= done[3][0] - 0.002


def test_message_that_leaves_over_50_ms_late_is_counted() -> None:
    recorder = Recorder()
    for late in (-0.001, 0.0, 0.049, 0.051, 2.0):
        recorder.note_sent(late)
    assert (recorder.sent, recorder.late) == (5, 2)
