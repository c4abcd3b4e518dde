"""Plans: the same seed is the same plan, and a plan does what it was asked for."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import pytest

from duologue.bench.chaos.plan import KINDS, LONG_KINDS, MINUTE, Mode, counted, endless, role_of
from duologue.domain.errors import StartRefused

MODES: list[Mode] = ["embedded", "distributed"]


@pytest.mark.parametrize("mode", MODES)
def test_plan_of_the_same_seed_is_the_same(mode: Mode) -> None:
    assert list(islice(endless(7, mode), 200)) == list(islice(endless(7, mode), 200))
    assert counted(7, mode, faults=50, each=2) == counted(7, mode, faults=50, each=2)


def test_plan_of_another_seed_is_another() -> None:
    assert list(islice(endless(7, "embedded"), 20)) != list(islice(endless(8, "embedded"), 20))


@pytest.mark.parametrize("mode", MODES)
def test_plan_without_end_has_every_sort_of_fault(mode: Mode) -> None:
    assert {step.name for step in islice(endless(1, mode), 3000)} == {kind.name for kind in KINDS[mode]}


def test_plan_that_is_counted_has_as_many_as_were_asked_for() -> None:
    plan = counted(3, "distributed", kills={"ai-consumer": 30, "api": 4}, each=2, minutes=1)
    counts = Counter(step.name for step in plan if step.seconds < MINUTE)
    assert counts.pop("kill ai-consumer") == 30
    assert counts.pop("kill api") == 4
    assert set(counts.values()) == {2}
    lasting = Counter(step.name for step in plan if step.seconds >= MINUTE)
    assert lasting == {kind.name: 1 for kind in LONG_KINDS["distributed"]}


def test_plan_of_kills_alone_has_nothing_else() -> None:
    assert {step.name for step in counted(3, "embedded", kills={"duologue": 9})} == {"kill duologue"}


def test_plan_names_single_processes_of_a_role() -> None:
    plan = counted(3, "distributed", kills={"ai-consumer": 30})
    assert {step.target for step in plan} == {"ai-consumer-1", "ai-consumer-2"}
    assert {role_of(step.target) for step in plan} == {"ai-consumer"}


def test_plan_that_kills_what_there_is_not_is_refused() -> None:
    with pytest.raises(StartRefused, match="nothing is called database"):
        counted(3, "distributed", kills={"database": 1})


@pytest.mark.parametrize("mode", MODES)
def test_faults_that_come_together_are_few_short_and_hit_different_targets(mode: Mode) -> None:
    together: list[str] = []
    for step in counted(5, mode, faults=500, minutes=20):
        together = [*together, step.target] if step.joined else [step.target]
        assert len(together) <= 3
        assert len({role_of(target) for target in together}) == len(together)
        assert not step.joined or step.seconds < MINUTE


@pytest.mark.parametrize("mode", MODES)
def test_nothing_joins_a_fault_that_lasts_a_minute(mode: Mode) -> None:
    plan = counted(5, mode, faults=200, minutes=20)
    assert not any(second.joined for first, second in pairwise(plan) if first.seconds >= MINUTE)


def test_redis_is_flushed_only_where_it_does_not_hold_the_log() -> None:
    assert "flush valkey" not in {kind.name for kind in KINDS["embedded"]}
    assert "flush valkey" in {kind.name for kind in KINDS["distributed"]}


def test_more_overlap_lets_more_faults_begin_beside_others() -> None:
    plans = [counted(7, "distributed", each=5, overlap=overlap) for overlap in (0.0, 0.3, 0.9)]
    joined = [sum(step.joined for step in plan) for plan in plans]
    assert joined[0] == 0
    assert joined[0] < joined[1] < joined[2]
