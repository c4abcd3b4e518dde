"""What the mock says about itself."""

from __future__ import annotations

from duologue.bench.mock_llm.stats import Cost, MockStats


def _cost(share: float) -> Cost:
    return Cost(seconds=10.0, cpu_seconds=2.5, cpu_us_per_request=25.04, cpu_us_per_piece=3.1, cpu_share=share)


def test_cost_is_told_in_one_line() -> None:
    words = _cost(0.25).told(MockStats(requests=100, pieces=800))
    assert (
        words == "100 requests, 800 pieces in 10.0 s: 2.50 s CPU, 25.0 µs a request, 3.1 µs a piece, 25.0% of one core"
    )


def test_cost_near_a_whole_core_is_told_with_a_warning() -> None:
    assert "near its own end" in _cost(0.75).told(MockStats())
    assert "near its own end" not in _cost(0.65).told(MockStats())


def test_cost_of_nothing_names_no_share_of_it() -> None:
    cost = Cost(seconds=1.0, cpu_seconds=0.0, cpu_us_per_request=None, cpu_us_per_piece=None, cpu_share=0.0)
    assert cost.told(MockStats()) == "0 requests, 0 pieces in 1.0 s: 0.00 s CPU, 0.0% of one core"
