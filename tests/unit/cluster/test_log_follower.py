"""Following many logs at once: the past, what comes, rotation, choice."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from duologue.cluster.log_follower import LogFollower, follow
from duologue.domain.errors import StartRefused


def _append(path: Path, *lines: str) -> None:
    with path.open("a") as log:
        log.writelines(f"{line}\n" for line in lines)


def _read(follower: LogFollower) -> list[tuple[str, str]]:
    return [(name, line) for name, _, line in follower.lines()]


def test_follower_at_first_shows_the_last_ten_lines(tmp_path: Path) -> None:
    _append(tmp_path / "api-1.log", *(f"line {number}" for number in range(30)))
    with LogFollower(tmp_path, "") as follower:
        assert _read(follower) == [("api-1", f"line {number}") for number in range(20, 30)]


def test_follower_of_a_long_log_begins_with_a_whole_line(tmp_path: Path) -> None:
    _append(tmp_path / "api-1.log", "a" * 10_000, "b" * 3_000)
    with LogFollower(tmp_path, "") as follower:
        assert _read(follower) == [("api-1", "b" * 3_000)]


def test_follower_then_shows_what_comes_and_half_lines_once_they_are_whole(tmp_path: Path) -> None:
    _append(tmp_path / "api-1.log", "past")
    with LogFollower(tmp_path, "") as follower, (tmp_path / "api-1.log").open("a") as log:
        follower.lines()
        log.write("new\nhal")
        log.flush()
        assert _read(follower) == [("api-1", "new")]
        log.write("f\n")
        log.flush()
        assert _read(follower) == [("api-1", "half")]


def test_follower_after_a_rotation_shows_the_end_of_the_old_and_all_of_the_new(tmp_path: Path) -> None:
    log = tmp_path / "api-1.log"
    _append(log, "past")
    with LogFollower(tmp_path, "") as follower:
        follower.lines()
        _append(log, "last")
        log.rename(tmp_path / "api-1.log.1")
        _append(log, "first")
        assert _read(follower) == [("api-1", "last"), ("api-1", "first")]


def test_follower_with_a_log_that_is_new_shows_all_of_it(tmp_path: Path) -> None:
    with LogFollower(tmp_path, "") as follower:
        _append(tmp_path / "api-2.log", *(f"line {number}" for number in range(30)))
        assert len(_read(follower)) == 30


@pytest.mark.parametrize(
    ("service", "names"), [("api-1", ["api-1"]), ("api", ["api-1", "api-2"]), ("kafka", ["kafka"]), ("", None)]
)
def test_follower_of_one_service_shows_that_alone(tmp_path: Path, service: str, names: list[str] | None) -> None:
    every = ["api-1", "api-2", "kafka", "message-relay-1"]
    for name in every:
        _append(tmp_path / f"{name}.log", "line")
    with LogFollower(tmp_path, service) as follower:
        assert [name for name, _ in _read(follower)] == (names or every)


def test_follow_an_unknown_service_names_those_that_are_there(tmp_path: Path) -> None:
    _append(tmp_path / "api-1.log", "line")
    with pytest.raises(StartRefused, match="there is no log of web; there are: api-1"):
        follow(tmp_path, "web", Console(file=io.StringIO()))
