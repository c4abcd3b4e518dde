"""What is written down while a run goes on, and read after it."""

from __future__ import annotations

from pathlib import Path

from duologue.bench.chaos.device import Journal as DeviceJournal
from duologue.bench.chaos.history import Closed, DeviceName, Frame, Sent, Told, read_asked, read_devices
from duologue.bench.chaos.leftovers import compare
from duologue.bench.chaos.model import Journal
from duologue.bench.chaos.story import Title, marker_of, question, story, title_of


def test_story_names_what_it_answers_and_no_two_are_alike() -> None:
    first, second = ("".join(story("chaos-0.1", number, 5)) for number in (1, 2))
    assert first != second
    assert title_of(first) == Title("chaos-0.1", 1)
    assert title_of("something else") is None


def test_story_that_is_shorter_is_the_beginning_of_a_longer_one() -> None:
    assert "".join(story("a", 1, 9)).startswith("".join(story("a", 1, 4)))


def test_marker_is_found_in_what_is_said() -> None:
    assert marker_of(question("chaos-3.17")) == "chaos-3.17"
    assert marker_of("nothing") == ""


def test_journal_of_the_model_tells_how_each_answer_ended(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "model.jsonl")
    numbers = [journal.begin("a", 5), journal.begin("b", 6), journal.begin("c", 7)]
    journal.end(numbers[0], "whole")
    journal.end(numbers[0], "abandoned")  # the first end counts
    journal.end(numbers[1], "cut")
    journal.close()
    asked = read_asked(tmp_path / "model.jsonl")
    assert [(each.number, each.marker, each.words, each.how) for each in asked] == [
        (1, "a", 5, "whole"),
        (2, "b", 6, "cut"),
        (3, "c", 7, ""),
    ]


def test_journal_of_a_model_that_was_killed_goes_on_after_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "model.jsonl"
    journal = Journal(path)
    journal.begin("a", 5)
    journal.close()
    path.write_bytes(path.read_bytes() + b'{"number":2,"at":1.0,"mar')
    journal = Journal(path)
    assert journal.begin("b", 5) == 2
    journal.close()
    assert [(each.number, each.marker) for each in read_asked(path)] == [(1, "a"), (2, "b")]


def test_journal_of_a_device_is_read_as_it_was_written(tmp_path: Path) -> None:
    name = DeviceName(name="user.keeper", user_id="user", keeps_position=True)
    journal = DeviceJournal(tmp_path, name)
    journal.write(Sent(at=1.0, frame=Frame(type="message", id="a", content="Hi")))
    journal.told(b'{"type":"echo","event_id":"e:1","role":"user","id":"a","metadata":{"any":1}}')
    journal.write(Closed(at=3.0, code=1012))
    journal.close()
    journal.write(Closed(at=4.0, code=1006))  # it has left
    (device,) = read_devices(tmp_path)
    assert device.name == name
    for _ in range(2):
        sent, told, closed = device.entries
        assert (sent, closed) == (Sent(at=1.0, frame=Frame(id="a", content="Hi")), Closed(at=3.0, code=1012))
        assert isinstance(told, Told)
        assert told.frame == Frame(type="echo", event_id="e:1", id="a")


def test_leftovers_are_what_a_process_has_too_much_of() -> None:
    before = {"process_open_fds": 20.0, "duologue_tasks": 30.0}
    well = {"process_open_fds": 40.0, "duologue_tasks": 33.0, "duologue_connections": 0.0}
    assert compare("api-1", before, well) == []
    ill = {"process_open_fds": 90.0, "duologue_tasks": 60.0, "duologue_connections": 1.0}
    assert [left.kind for left in compare("api-1", before, ill)] == ["socket", "file", "task"]
