"""The yardstick of benchmarks."""

from __future__ import annotations

import pytest

from duologue.bench import calibration


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """CPU seconds of each round of each part, in the place of real work."""
    rounds: dict[str, list[float]] = {}
    clock = 100.0

    def part(name: str) -> None:
        def work() -> None:
            nonlocal clock
            clock += rounds[name].pop(0)

        monkeypatch.setattr(calibration, name, work)

    for name in ("_json", "_dicts", "_digests", "_echoes"):
        part(name)
    monkeypatch.setattr("time.thread_time", lambda: clock)
    return rounds


def test_calibration_is_the_sum_of_each_parts_best_round(spent: dict[str, list[float]]) -> None:
    slow = [9.0] * (calibration.ROUNDS - 1)
    spent |= {"_json": [*slow, 1.0], "_dicts": [2.0, *slow], "_digests": [3.0, *slow], "_echoes": [*slow, 4.0]}
    assert calibration.calibrate() == pytest.approx(10.0)


@pytest.mark.parametrize("part", [calibration._json, calibration._dicts, calibration._digests, calibration._echoes])
def test_part_of_the_calibration_does_its_work_and_ends(part: object) -> None:
    assert callable(part)
    part()
