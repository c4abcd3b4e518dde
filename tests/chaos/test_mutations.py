"""Distributed builds with a guarantee broken on purpose: chaos finds each."""

from __future__ import annotations

import pytest
from tests.support.chaos_run import Hit, Mutation, plan, run_distributed

from duologue.bench.chaos.plan import Step
from duologue.bench.chaos.run import Load
from duologue.bench.distributed import OwnEngines

_BUSY = Load(users=6, rate=15.0, seed=11, heal_seconds=20.0)
_CALM = Load(users=6, rate=6.0, seed=11, heal_seconds=40.0)

_CONSUMERS = plan(Hit("kill", "ai-consumer-1"), Hit("kill", "ai-consumer-2", joined=True))
_RELAYS = plan(*(Hit("kill", f"message-relay-{number}") for number in (1, 2, 1, 2)))
_RECONNECTS = plan(*(Hit("vanish", "clients", 0.3) for _ in range(6)))
_HANGS = plan(Hit("slow", "model", 15.0), Hit("pause", "ai-consumer-1", 9.0, joined=True, pause_seconds=3.0))


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("mutation", "steps", "load", "found"),
    [
        ("commit_before_work", _CONSUMERS, _BUSY, {"every message has exactly one outcome"}),
        ("dedupe_off", _CONSUMERS + _RELAYS, _BUSY, {"an outcome is told once"}),
        ("fence_removed", _HANGS, _CALM, {"the text shown is the stored reply"}),
        ("replay_before_subscribe", _RECONNECTS, _BUSY, {"event ids are gapless and increasing"}),
    ],
)
async def test_distributed_build_with_a_guarantee_broken_on_purpose_is_found(
    engines: OwnEngines, mutation: Mutation, steps: list[Step], load: Load, found: set[str]
) -> None:
    outcome = await run_distributed(engines, steps, load, mutation=mutation)
    assert found <= outcome.broken, outcome.evidence
