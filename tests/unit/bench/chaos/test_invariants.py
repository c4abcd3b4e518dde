"""Each invariant finds what breaks it, and nothing else does."""

from __future__ import annotations

import pytest
from tests.support.chaos_history import Happening, clean, reconnected, text

from duologue.bench.chaos.history import (
    Asked,
    Closed,
    Frame,
    Happened,
    Leftover,
    Question,
    Read,
    Row,
    Sent,
    Told,
)
from duologue.bench.chaos.invariants.breach import INVARIANTS
from duologue.bench.chaos.report import KINDS

LATER = 2000.0


@pytest.fixture
def run() -> Happening:
    """A run in which all held."""
    return clean()


def happened(fault: str, target: str, began: float, ended: float, exit_code: int | None = None) -> Happened:
    return Happened(number=9, fault=fault, target=target, began=began, ended=ended, healed=ended, exit_code=exit_code)


def test_invariants_of_a_run_in_which_all_held_are_not_broken(run: Happening) -> None:
    assert run.broken() == set()


def test_kinds_of_breaches_name_invariants_that_there_are() -> None:
    assert {name for names in KINDS.values() for name in names} <= set(INVARIANTS)


# Event ids


def test_event_ids_with_a_gap_are_found(run: Happening) -> None:
    epoch, number = run.last_position()
    run.keeper.append(Told(at=LATER, frame=Frame(type="echo", event_id=f"{epoch}:{number + 2}")))
    assert run.broken() == {"event ids are gapless and increasing"}


def test_event_ids_after_a_reconnect_that_skips_some_are_found(run: Happening) -> None:
    epoch, number = run.last_position()
    reconnected(run.keeper, LATER, f"{epoch}:{number + 1}", last=f"{epoch}:{number}")
    assert run.broken() == {"event ids are gapless and increasing"}


def test_event_ids_of_a_socket_attached_again_that_skips_some_are_found(run: Happening) -> None:
    epoch, number = run.last_position()
    attached = Frame(type="connection", event_id=f"{epoch}:{number + 1}", recovered=True)
    run.simple.insert(-1, Told(at=LATER, frame=attached))
    assert run.broken() == {"event ids are gapless and increasing"}


def test_frames_told_again_to_a_client_that_keeps_its_position_are_found(run: Happening) -> None:
    epoch, number = run.last_position()
    last = run.keeper[run.index("response", "m3")]
    reconnected(run.keeper, LATER, f"{epoch}:{number - 1}", recovered=False)
    run.faults.append(happened("flush", "valkey", LATER - 1, LATER - 1))
    run.keeper.append(last)
    assert run.broken() == {"nothing is told again to a client that keeps its position"}


def test_frames_told_again_to_a_client_without_position_are_allowed(run: Happening) -> None:
    epoch, number = run.last_position()
    last = run.simple[run.index("response", "m3", device="simple")]
    assert isinstance(last, Told)
    reconnected(run.simple, last.at + 2, f"{epoch}:{number - 1}")
    run.simple.append(Told(at=last.at + 2, frame=last.frame))
    assert run.broken() == set()


def test_frames_told_again_after_more_than_40_seconds_are_found(run: Happening) -> None:
    epoch, number = run.last_position()
    last = run.simple[run.index("response", "m3", device="simple")]
    assert isinstance(last, Told)
    run.simple.append(Closed(at=last.at + 60, code=1006))
    reconnected(run.simple, last.at + 61, f"{epoch}:{number - 1}")
    run.simple.append(Told(at=last.at + 61, frame=last.frame))
    assert run.broken() == {"repeats are of the last 40 seconds"}


def test_recovered_false_without_a_loss_is_found(run: Happening) -> None:
    epoch, number = run.last_position()
    reconnected(run.keeper, LATER, f"{epoch}:{number}", recovered=False)
    assert run.broken() == {"recovered is false only where frames are gone"}


def test_recovered_false_after_a_flush_is_allowed(run: Happening) -> None:
    run.faults.append(happened("flush", "valkey", LATER - 1, LATER - 1))
    reconnected(run.keeper, LATER, "other:0", recovered=False)
    assert run.broken() == set()


def test_recovered_false_in_the_embedded_mode_is_found_even_if_valkey_was_killed(run: Happening) -> None:
    run.mode = "embedded"
    epoch, number = run.last_position()
    run.faults.append(happened("kill", "valkey", LATER - 1, LATER - 1))
    reconnected(run.keeper, LATER, f"{epoch}:{number}", recovered=False)
    assert run.broken() == {"recovered is false only where frames are gone"}


def test_recovered_false_of_a_client_without_position_that_was_surely_sent_nothing_is_allowed(run: Happening) -> None:
    epoch, number = run.last_position()
    reconnected(run.simple, LATER, f"{epoch}:{number}", recovered=False)
    assert run.broken() == set()


def test_recovered_false_of_a_client_without_position_after_a_socket_that_lasted_is_found(run: Happening) -> None:
    epoch, number = run.last_position()
    last = run.keeper[run.index("response", "m3")]
    run.keeper.remove(run.keeper[-1])
    run.keeper.append(Closed(at=last.at + 50, code=1006))
    reconnected(run.simple, last.at + 51, f"{epoch}:{number}", recovered=False)
    assert run.broken() == {"recovered is false only where frames are gone"}


def test_another_epoch_without_a_loss_is_found(run: Happening) -> None:
    reconnected(run.simple, LATER, "other:0")
    assert run.broken() == {"an epoch changes only where redis lost data"}


def test_two_other_epochs_after_one_loss_are_found(run: Happening) -> None:
    run.faults.append(happened("kill", "valkey", LATER - 1, LATER))
    reconnected(run.simple, LATER + 1, "other:0")
    reconnected(run.simple, LATER + 2, "third:0")
    assert run.broken() == {"an epoch changes only where redis lost data"}


def test_a_frame_that_was_under_way_when_redis_lost_its_data_is_allowed(run: Happening) -> None:
    epoch, number = run.last_position()
    run.faults.append(happened("flush", "valkey", LATER, LATER + 0.01))
    run.keeper.append(Told(at=LATER + 0.1, frame=Frame(type="echo", event_id=f"{epoch}:{number + 1}")))
    reconnected(run.keeper, LATER + 2, "other:0", recovered=False)
    assert run.broken() == set()


# What is shown


def test_an_outcome_that_has_two_events_is_found(run: Happening) -> None:
    epoch, number = run.last_position()
    again = run.keeper[run.index("response", "m3")]
    assert isinstance(again, Told)
    fields = {name: getattr(again.frame, name) for name in again.frame.__struct_fields__}
    run.keeper.append(Told(at=LATER, frame=Frame(**fields | {"event_id": f"{epoch}:{number + 1}"})))
    assert run.broken() == {"an outcome is told once"}


def test_a_piece_of_a_fenced_attempt_after_a_higher_one_is_found(run: Happening) -> None:
    place = run.index("reset", "m2", attempt=2)
    late = Frame(type="delta", message_id="m2", attempt=1, seq=2, content="late")
    run.keeper.insert(place + 1, Told(at=LATER, frame=late))
    assert run.broken() == {"nothing of a fenced attempt is shown"}


def test_an_earlier_version_that_comes_after_its_regeneration_began_is_allowed(run: Happening) -> None:
    response = run.keeper.pop(run.index("response", "m2", attempt=2))
    run.keeper.insert(run.index("reset", "m2", attempt=3) + 1, response)
    assert run.broken() == set()


def test_a_missing_piece_is_found(run: Happening) -> None:
    del run.keeper[run.index("delta", "m1")]
    assert run.broken() == {"pieces of a reply follow each other"}


def test_a_piece_after_the_end_of_its_attempt_is_found(run: Happening) -> None:
    late = Frame(type="delta", message_id="m3", attempt=1, seq=2, content="")
    run.keeper.insert(run.index("response", "m3") + 1, Told(at=LATER, frame=late))
    assert run.broken() == {"pieces of a reply follow each other"}


def test_a_response_that_is_not_what_is_stored_is_found(run: Happening) -> None:
    run.change(run.index("response", "m1"), content="other")
    assert run.broken() == {"the text shown is the stored reply"}


def test_pieces_that_are_not_the_beginning_of_the_reply_are_found(run: Happening) -> None:
    run.change(run.index("delta", "m1"), content="other")
    assert run.broken() == {"the text shown is the stored reply"}


def test_a_response_of_an_attempt_that_is_not_stored_is_found(run: Happening) -> None:
    run.change(run.index("response", "m3"), attempt=2)
    assert run.broken() == {"the text shown is the stored reply", "nothing stays unseen"}


def test_replies_told_in_another_order_than_their_turns_are_found(run: Happening) -> None:
    first, second = run.index("response", "m1"), run.index("response", "m2", attempt=2)
    frames = [run.keeper[place] for place in (first, second)]
    ids = [frame.frame.event_id for frame in frames if isinstance(frame, Told)]
    run.keeper[first], run.keeper[second] = frames[1], frames[0]
    run.change(first, event_id=ids[0])
    run.change(second, event_id=ids[1])
    assert "replies are told in the order of their turns" in run.broken()


# The store


def test_an_acknowledged_message_that_is_not_stored_is_found(run: Happening) -> None:
    del run.questions[2]
    assert "an acknowledged message is stored once" in run.broken()


def test_a_message_stored_twice_is_found(run: Happening) -> None:
    other = {name: getattr(run.questions[0], name) for name in run.questions[0].__struct_fields__}
    run.questions.append(Question(**other | {"message_id": "other"}))
    assert run.broken() == {
        "an acknowledged message is stored once",
        "every message has exactly one outcome",
        "the model is asked once an attempt",
    }


def test_a_message_that_nobody_said_is_found(run: Happening) -> None:
    said = next(entry for entry in run.keeper if isinstance(entry, Sent))
    run.keeper.remove(said)
    assert run.broken() == {"nothing is stored that nobody said"}


def test_a_message_without_outcome_is_found(run: Happening) -> None:
    del run.keeper[run.index("response", "m3")]
    del run.simple[run.index("response", "m3", device="simple")]
    run.change_reply(3, state="generating", completed_at=None, content="")
    assert run.broken() == {"every message has exactly one outcome", "nothing stays unseen"}


def test_two_first_answers_to_one_message_are_found(run: Happening) -> None:
    run.change_reply(2, generation=1)
    assert "every message has exactly one outcome" in run.broken()


def test_a_regeneration_without_effect_is_found(run: Happening) -> None:
    run.keeper.append(Sent(at=LATER, frame=Frame(type="regenerate", id="more", message_id="m2", attempt=3)))
    run.keeper.append(Told(at=LATER, frame=Frame(type="ack", id="more", message_id="m2")))
    assert run.broken() == {"every accepted regeneration has one outcome"}


def test_a_version_that_nobody_asked_for_is_found(run: Happening) -> None:
    run.keeper = [e for e in run.keeper if not (isinstance(e, Sent) and e.frame.type == "regenerate")]
    assert run.broken() == {"every accepted regeneration has one outcome"}


def test_a_stopped_reply_that_nobody_stopped_is_found(run: Happening) -> None:
    run.keeper = [e for e in run.keeper if not (isinstance(e, Sent) and e.frame.type == "stop")]
    assert run.broken() == {"a reply is stopped only if somebody asked"}


@pytest.mark.parametrize("code", ["internal", "taken_over", "timeout_silence"])
def test_a_reply_that_failed_without_a_cause_is_found(run: Happening, code: str) -> None:
    run.change_reply(0, state="failed", content="", error_code=code)
    place = run.index("response", "m1")
    for entries in (run.keeper, run.simple):
        told = entries[place if entries is run.keeper else run.index("response", "m1", device="simple")]
        assert isinstance(told, Told)
        failed = Frame(type="error", code="generation_failed", message_id="m1", attempt=1, event_id=told.frame.event_id)
        entries[entries.index(told)] = Told(at=told.at, frame=failed)
    assert run.broken() == {"a reply fails only for a cause"}


def test_a_stored_reply_that_the_model_did_not_give_is_found(run: Happening) -> None:
    run.asked[0] = Asked(number=8, marker="a", at=run.asked[0].at, words=3, how="whole")
    assert run.broken() == {"a stored reply is one answer of the model"}


def test_a_complete_reply_of_an_answer_that_broke_off_is_found(run: Happening) -> None:
    run.asked[0] = Asked(number=1, marker="a", at=run.asked[0].at, words=3, how="cut")
    assert run.broken() == {"a stored reply is one answer of the model"}


def test_one_answer_stored_for_two_versions_is_found(run: Happening) -> None:
    run.change_reply(2, content=text("b", 3))
    for device in ("keeper", "simple"):
        entries = getattr(run, device)
        entries[:] = [
            e for e in entries if not (isinstance(e, Told) and e.frame.type == "delta" and e.frame.attempt == 3)
        ]
        place = run.index("response", "m2", attempt=3, device=device)
        frame = entries[place].frame
        fields = {name: getattr(frame, name) for name in frame.__struct_fields__} | {"content": text("b", 3)}
        entries[place] = Told(at=entries[place].at, frame=Frame(**fields))
    run.asked = [asked for asked in run.asked if asked.number != 4]
    assert run.broken() == {"two versions are two answers", "a reply starts after the one before has ended"}


def test_a_reply_that_a_client_never_saw_is_found(run: Happening) -> None:
    epoch, number = run.last_position()
    del run.keeper[run.index("response", "m3") :]
    run.faults.append(happened("flush", "valkey", LATER - 1, LATER - 1))
    reconnected(run.keeper, LATER, "other:0", recovered=False, last=f"{epoch}:{number}")
    assert run.broken() == {"nothing stays unseen"}
    run.keeper.append(Read(at=LATER, rows=[Row(message_id="m3", attempt=1, state="stopped")]))
    assert run.broken() == set()


# The model


def test_a_model_asked_more_often_than_there_are_attempts_is_found(run: Happening) -> None:
    run.asked.append(Asked(number=9, marker="a", at=LATER, words=3, how="whole"))
    assert run.broken() == {"the model is asked once an attempt"}


@pytest.mark.parametrize("how", ["", "refused", "cut", "silent"])
def test_a_model_asked_again_after_it_broke_is_allowed(run: Happening, how: str) -> None:
    run.asked.append(Asked(number=9, marker="a", at=run.asked[0].at + 0.001, words=3, how=how))  # type: ignore[arg-type]
    assert run.broken() == set()


def test_a_model_given_up_for_its_silence_while_it_hung_may_be_asked_again(run: Happening) -> None:
    run.asked.append(Asked(number=9, marker="c", at=LATER, words=3, how="abandoned", ended=LATER + 8))
    assert run.broken() == {"the model is asked once an attempt"}
    run.faults.append(happened("pause", "model", LATER - 1, LATER + 9))
    assert run.broken() == set()


def test_a_model_asked_about_what_is_not_stored_is_found(run: Happening) -> None:
    run.asked.append(Asked(number=9, marker="other", at=LATER, words=3, how="whole"))
    assert run.broken() == {"the model is asked only what is stored"}


def test_a_reply_that_starts_before_the_one_before_has_ended_is_found(run: Happening) -> None:
    run.change_reply(0, completed_at=LATER)
    assert run.broken() == {"a reply starts after the one before has ended"}


# The rest


def test_what_did_not_heal_is_found(run: Happening) -> None:
    run.not_healed.append("nothing comes")
    assert run.broken() == {"it heals"}


def test_a_process_that_ends_with_an_error_is_found(run: Happening) -> None:
    run.faults.append(happened("term", "api-1", LATER, LATER + 1, exit_code=1))
    assert run.broken() == {"what is asked to end ends in order"}


@pytest.mark.parametrize("code", ["internal_error", "invalid_frame", "message_not_found"])
def test_an_error_without_reason_is_found(run: Happening, code: str) -> None:
    run.keeper.append(Told(at=LATER, frame=Frame(type="error", code=code)))
    assert run.broken() == {"clients are told only errors that have a reason"}


def test_a_close_without_reason_is_found(run: Happening) -> None:
    run.keeper.append(Closed(at=LATER, code=4401))
    assert run.broken() == {"clients are told only errors that have a reason"}


def test_what_is_left_behind_is_found(run: Happening) -> None:
    run.leftovers.append(Leftover(kind="key", where="live:x", detail="no end"))
    assert run.broken() == {"nothing is left behind"}


def test_every_invariant_has_been_broken_by_a_test() -> None:
    """The names in this file are those of all invariants, so that a new one gets a test."""
    with open(__file__, encoding="utf-8") as source:  # noqa: PTH123
        words = source.read()
    assert [name for name in INVARIANTS if f'"{name}"' not in words] == []
