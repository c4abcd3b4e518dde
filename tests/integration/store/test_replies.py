"""Claims: who writes a reply, and in which order (rules Owner, Order, Versions, Try and attempt)."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.store.scenario import NOW, Scenario, add_version, ended

from duologue.store.database import StoreRefused
from duologue.store.deletion import delete_message
from duologue.store.messages import StoredRequest
from duologue.store.replies import (
    ClaimState,
    advance_attempt,
    claim_with_prompts,
    mark_leaving,
    read_claims,
    store_and_claim,
)


async def test_claim_of_waiting_reply_is_its_first_attempt(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    (held,) = await ada.claim(request)
    assert (held.attempt, held.takeovers, held.taken_over) == (1, 0, False)
    assert await ada.database.read(read_claims, [request.reply_id]) == {request.reply_id: ClaimState(1, "generating")}


async def test_claim_of_second_turn_waits_for_the_first_ones_outcome(ada: Scenario) -> None:
    one, two = await ada.asked("one", "two")
    assert [held.reply_id for held in await ada.claim(one, two)] == [one.reply_id]
    assert await ada.claim(two, owner="late") == []
    await ada.finish(ended((await ada.claim(one))[0], "answer"))
    assert [held.reply_id for held in await ada.claim(two)] == [two.reply_id]


@pytest.mark.parametrize("state", ["complete", "failed", "stopped"])
async def test_claim_after_any_outcome_of_smaller_turns_succeeds(ada: Scenario, state: str) -> None:
    one, two = await ada.asked("one", "two")
    (held,) = await ada.claim(one)
    await ada.finish(ended(held, "", state))  # type: ignore[arg-type]
    assert len(await ada.claim(two)) == 1


async def test_claim_after_deletion_of_smaller_turn_succeeds(ada: Scenario) -> None:
    _, two = await ada.asked("one", "two")
    await ada.database.write(delete_message, ada.user.uid, ada.id_of("one"), NOW)
    assert len(await ada.claim(two)) == 1


async def test_claims_of_two_conversations_do_not_wait_for_each_other(ada: Scenario) -> None:
    other = await ada.another_conversation()
    entries = await ada.store(ada.says("one"), ada.says("two", other))
    requests = [entry for entry in entries if isinstance(entry, StoredRequest)]
    assert len(await ada.claim(*requests)) == 2


async def test_claim_of_finished_reply_is_left_out(ada: Scenario) -> None:
    request = await ada.answered("one", "answer")
    assert await ada.claim(request) == []


async def test_two_workers_that_claim_at_once_hold_different_attempts(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    claims = [
        held
        for held_by_one in await asyncio.gather(*(ada.claim(request, owner=f"worker {n}") for n in range(5)))
        for held in held_by_one
    ]
    assert sorted((held.attempt, held.takeovers, held.taken_over) for held in claims) == [
        (1, 0, False),
        (2, 1, True),
        (3, 2, True),
        (4, 3, True),
        (5, 4, True),
    ]


async def test_claim_while_the_owner_is_leaving_waits_and_then_is_no_takeover(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    (held,) = await ada.claim(request, owner="old")
    await ada.database.write(mark_leaving, {held.reply_id: held.attempt}, 60_000, NOW)
    assert await ada.claim(request, owner="new") == []
    await ada.database.write(mark_leaving, {held.reply_id: held.attempt}, -1, NOW)  # that time is over
    (taken,) = await ada.claim(request, owner="new")
    assert (taken.attempt, taken.takeovers, taken.taken_over) == (2, 0, True)
    (again,) = await ada.claim(request, owner="third")
    assert (again.attempt, again.takeovers, again.taken_over) == (3, 1, True)


async def test_leaving_owner_may_still_finish(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    (held,) = await ada.claim(request)
    await ada.database.write(mark_leaving, {held.reply_id: held.attempt}, 60_000, NOW)
    assert await ada.finish(ended(held, "answer")) == {request.reply_id}


async def test_leaving_mark_of_an_overtaken_attempt_changes_nothing(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    (old,) = await ada.claim(request, owner="old")
    await ada.claim(request, owner="new")
    await ada.database.write(mark_leaving, {old.reply_id: old.attempt}, 60_000, NOW)
    assert len(await ada.claim(request, owner="third")) == 1


async def test_advance_of_held_attempt_gives_the_next_and_counts_no_takeover(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    (held,) = await ada.claim(request)
    assert await ada.database.write(advance_attempt, request.reply_id, held.attempt, NOW) == 2
    (taken,) = await ada.claim(request, owner="new")
    assert (taken.attempt, taken.takeovers) == (3, 1)


async def test_advance_of_overtaken_or_finished_attempt_is_refused(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    (old,) = await ada.claim(request, owner="old")
    (new,) = await ada.claim(request, owner="new")
    assert await ada.database.write(advance_attempt, request.reply_id, old.attempt, NOW) is None
    await ada.finish(ended(new, "answer"))
    assert await ada.database.write(advance_attempt, request.reply_id, new.attempt, NOW) is None


async def test_attempts_count_on_across_generations(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    await ada.claim(request)
    (held,) = await ada.claim(request)
    await ada.finish(ended(held, "first answer"))
    second = await ada.database.write(add_version, request, 2, "queued")
    (claimed,) = await ada.database.write(claim_with_prompts, [second], "one", NOW)
    assert (claimed.attempt, claimed.takeovers) == (3, 0)
    assert claimed.prompt.content == "one"


async def test_second_row_of_one_generation_is_refused(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    await ada.database.write(add_version, request, 2, "queued")
    with pytest.raises(StoreRefused):
        await ada.database.write(add_version, request, 2, "queued")


async def test_store_and_claim_starts_what_it_is_told_and_only_first_turns(ada: Scenario) -> None:
    other = await ada.another_conversation()
    batch = [ada.says("one"), ada.says("two"), ada.says("three", other), ada.says("four")]
    start = {0, 1, 2}
    entries, claimed = await ada.database.write(store_and_claim, batch, start, "one", NOW)
    assert [entry.state for entry in entries if isinstance(entry, StoredRequest)] == ["queued"] * 4
    assert sorted(each.prompt.content for each in claimed) == ["one", "three"]


async def test_store_and_claim_takes_over_what_a_dead_worker_left(ada: Scenario) -> None:
    batch = [ada.says("one")]
    start = {0}
    await ada.database.write(store_and_claim, batch, start, "dead", NOW)
    entries, claimed = await ada.database.write(store_and_claim, batch, start, "new", NOW)
    assert [(each.attempt, each.taken_over) for each in claimed] == [(2, True)]
    assert isinstance(entries[0], StoredRequest)
    assert (entries[0].state, entries[0].fresh) == ("generating", False)


async def test_store_and_claim_of_finished_message_claims_nothing(ada: Scenario) -> None:
    await ada.answered("one", "answer")
    entries, claimed = await ada.database.write(store_and_claim, [ada.says("one")], {0}, "new", NOW)
    assert claimed == []
    assert isinstance(entries[0], StoredRequest)
    assert entries[0].state == "complete"


async def test_claim_state_of_deleted_reply_is_left_out(ada: Scenario) -> None:
    one, two = await ada.asked("one", "two")
    await ada.database.write(delete_message, ada.user.uid, one.message_id, NOW)
    assert await ada.database.read(read_claims, [one.reply_id, two.reply_id]) == {two.reply_id: ClaimState(0, "queued")}
