"""The command: what it is asked for, and with what it exits."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

from duologue.bench.chaos import command
from duologue.bench.chaos.options import ChaosOptions, parse_kills
from duologue.cli import app
from duologue.domain.errors import StartRefused


@dataclass
class Ended:
    """What the exit code follows from."""

    is_clean: bool


def test_kills_are_read_by_target() -> None:
    assert parse_kills("ai-consumer=300,api=100") == {"ai-consumer": 300, "api": 100}
    assert parse_kills("") == {}


@pytest.mark.parametrize("text", ["ai-consumer", "api=many", "=", "api=-1"])
def test_kills_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(StartRefused, match="ai-consumer=300"):
        parse_kills(text)


def test_options_are_told_as_the_command_that_runs_the_same_plan_again() -> None:
    options = ChaosOptions(mode="distributed", kill="api=2", each=1, seed=7, users=3, rate=2.5)
    words = "duologue chaos --mode distributed --seed 7 --users 3 --rate 2.5 --each 1 --kill api=2"
    assert options.arguments() == words


def test_options_without_a_count_have_a_plan_without_end() -> None:
    assert ChaosOptions(seconds=60).steps()[1] is None
    assert ChaosOptions(faults=5).steps()[1] == 5


@pytest.mark.parametrize(("is_clean", "code"), [(True, 0), (False, 1)])
def test_command_exits_with_whether_all_held(monkeypatch: pytest.MonkeyPatch, is_clean: bool, code: int) -> None:
    asked: list[ChaosOptions] = []

    def run(options: ChaosOptions, _: object) -> Ended:
        asked.append(options)
        return Ended(is_clean)

    monkeypatch.setattr(command, "chaos", run)
    done = CliRunner().invoke(app, ["chaos", "--seed", "7"])
    assert done.exit_code == code
    assert (asked[0].lasting_seconds, asked[0].seed, asked[0].mode) == (60.0, 7, "embedded")


def test_command_that_cannot_be_run_exits_with_2_and_says_why() -> None:
    done = CliRunner().invoke(app, ["chaos", "--kill", "database=1"])
    assert done.exit_code == 2
    assert re.search("nothing is called database", done.output)
