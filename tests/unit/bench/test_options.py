"""The command line of `duologue bench`: what it takes, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.support.bench_reports import report, step
from typer.testing import CliRunner

from duologue.bench import command
from duologue.bench.options import SCENARIOS, Asked, Messages, Output, Restart, Where, arguments, parameters
from duologue.bench.report.model import Report
from duologue.bench.target import entrance_of, refuse_strangers
from duologue.cli import app
from duologue.domain.errors import StartRefused

SECRET = "a secret that nobody may read in a report"


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, ["bench", *words], env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Asked, Where, Output]]:
    """What the command was asked to run: nothing is run."""
    found: list[tuple[str, Asked, Where, Output]] = []

    def run(name: str, options: Asked, where: Where, output: Output) -> Report:
        found.append((name, options, where, output))
        return report() if name != "restart" else report(step(breaches={"unanswered messages": 1}))

    monkeypatch.setattr(command, "bench", run)
    return found


def test_options_are_those_that_are_declared(asked: list[Any]) -> None:
    words = "messages --rate 50 --users 20 --devices 3 --turns 5 --mode distributed --ai-consumers 4 --json --seed 9"
    done = invoke(*words.split())
    assert done.exit_code == 0, done.output
    options = Messages(rate=50, users=20, devices=3, turns=5, seed=9)
    assert asked == [("messages", options, Where(mode="distributed", ai_consumers=4), Output(json=True))]


def test_run_that_was_not_correct_exits_with_1(asked: list[Any]) -> None:
    assert invoke("restart").exit_code == 1
    assert isinstance(asked[0][1], Restart)


@pytest.mark.parametrize("name", SCENARIOS)
def test_help_of_each_scenario_tells_what_it_measures(name: str) -> None:
    done = invoke(name, "--help")
    assert done.exit_code == 0
    assert "--mode" in done.output
    assert "--report" in done.output


@pytest.mark.parametrize(
    "words", ["messages --rate 0", "messages --devices 11", "messages --mode both", "one-hot-user --users 0"]
)
def test_value_out_of_its_bounds_is_refused(asked: list[Any], words: str) -> None:
    assert invoke(*words.split()).exit_code == 2
    assert not asked


def test_arguments_run_the_same_again_and_leave_the_secret_out() -> None:
    where = Where(url="http://127.0.0.1:1", jwt_secret=SECRET, i_own_this_system=True)
    words = arguments("messages", Messages(rate=50, tokens_per_second=2.5), where)
    assert words == (
        "duologue bench messages --url http://127.0.0.1:1 --i-own-this-system --tokens-per-second 2.5 --rate 50"
    )
    assert SECRET not in str(parameters(where))


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "http://localhost:1", "http://[::1]:80", "https://127.1.2.3"])
def test_system_of_this_machine_may_be_loaded(url: str) -> None:
    refuse_strangers(url, owned=False, option="--url")


@pytest.mark.parametrize("url", ["http://192.0.2.7:8080", "https://duologue.example", "http://127.0.0.1.example"])
def test_foreign_system_is_refused_unless_its_owner_says_so(url: str) -> None:
    with pytest.raises(StartRefused, match="--i-own-this-system"):
        refuse_strangers(url, owned=False, option="--url")
    refuse_strangers(url, owned=True, option="--url")


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ws://127.0.0.1:1", "http://"])
def test_url_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(StartRefused, match="begins with http"):
        refuse_strangers(url, owned=True, option="--url")


def test_running_system_needs_its_secret_from_option_or_environment() -> None:
    where = Where(url="http://127.0.0.1:1/")
    with pytest.raises(StartRefused, match="JWT_SECRET"):
        entrance_of(where, {})
    assert entrance_of(where, {"JWT_SECRET": SECRET}).address("ada").startswith("ws://127.0.0.1:1/ws?token=")


def test_foreign_system_is_refused_by_the_command_in_words() -> None:
    done = invoke("messages", "--url", "http://192.0.2.7:8080", "--jwt-secret", SECRET)
    assert done.exit_code == 2
    assert re.search(r"not on this machine", done.output)
    assert SECRET not in done.output


@pytest.mark.parametrize("name", ["idle", "history", "restart", "overload"])
def test_scenario_that_needs_its_own_system_refuses_a_running_one(name: str) -> None:
    done = invoke(name, "--url", "http://127.0.0.1:9", "--jwt-secret", SECRET)
    assert done.exit_code == 2
    assert "system of its own" in done.output
