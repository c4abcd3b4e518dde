"""`duologue chaos` itself: it finds nothing where nothing is wrong, and what is wrong on purpose."""

from __future__ import annotations

import pytest
from tests.support.chaos_run import Hit, Mutation, plan, run_distributed, run_embedded

from duologue.bench.chaos.plan import Step
from duologue.bench.chaos.run import Load
from duologue.bench.distributed import OwnEngines

_LOAD = Load(users=6, rate=12.0, seed=11, heal_seconds=40.0)
_BUSY = Load(users=6, rate=20.0, seed=11, heal_seconds=6.0)

_KILL = plan(Hit("kill", "duologue"))
_RECONNECTS = plan(*(Hit("vanish", "clients", 0.3) for _ in range(6)))
_CALM = Load(users=6, rate=6.0, seed=11, heal_seconds=15.0)
_HANDOVER = plan(Hit("slow", "model", 12.0), Hit("pause", "valkey", 7.0, joined=True, pause_seconds=3.0))


@pytest.mark.timeout(240)
async def test_embedded_system_under_faults_keeps_all_invariants() -> None:
    steps = plan(
        Hit("kill", "duologue"),
        Hit("vanish", "clients", 0.5, joined=True),
        Hit("kill", "valkey"),
        Hit("cut", "model", 1.0, joined=True),
        Hit("resend", "clients", joined=True),
    )
    outcome = await run_embedded(steps, _LOAD)
    assert outcome.evidence == []
    assert len(outcome.history.faults) == len(steps)
    assert len(outcome.history.questions) > 20


@pytest.mark.timeout(300)
async def test_distributed_system_under_faults_of_roles_and_engines_keeps_all_invariants(engines: OwnEngines) -> None:
    steps = plan(
        Hit("kill", "ai-consumer-1"),
        Hit("kill", "message-relay-2", joined=True),
        Hit("vanish", "clients", 0.5, joined=True),
        Hit("flush", "valkey"),
        Hit("kill", "websocket-server-2", joined=True),
    )
    outcome = await run_distributed(engines, steps, _LOAD)
    assert outcome.evidence == []
    assert len(outcome.history.faults) == len(steps)
    assert len(outcome.history.questions) > 20


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("mutation", "steps", "load", "found"),
    [
        ("commit_before_work", _KILL, _BUSY, {"every message has exactly one outcome"}),
        ("dedupe_off", _KILL, _BUSY, {"an outcome is told once"}),
        ("fence_removed", _HANDOVER, _CALM, {"the text shown is the stored reply"}),
        ("replay_before_subscribe", _RECONNECTS, _BUSY, {"event ids are gapless and increasing"}),
    ],
)
async def test_build_with_a_guarantee_broken_on_purpose_is_found(
    mutation: Mutation, steps: list[Step], load: Load, found: set[str]
) -> None:
    outcome = await run_embedded(steps, load, mutation=mutation)
    assert found <= outcome.broken, outcome.evidence
