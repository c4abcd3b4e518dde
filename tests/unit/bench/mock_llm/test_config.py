"""What can be set: one declaration, whichever way it is set."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from duologue.bench.fields import Field, fields
from duologue.bench.mock_llm import MockConfig, command
from duologue.bench.mock_llm.config import configured
from duologue.cli import app
from duologue.domain.errors import Rejected

SETTINGS = fields(MockConfig)


def _set_by_options(monkeypatch: pytest.MonkeyPatch, *words: str) -> MockConfig:
    """Return the configuration with which `duologue mock-llm` would serve."""
    served: list[MockConfig] = []

    async def run(config: MockConfig, *_: object) -> None:
        served.append(config)

    monkeypatch.setattr(command, "_run", run)
    done = CliRunner().invoke(app, ["mock-llm", *words])
    assert done.exit_code == 0, done.output
    return served[0]


def _another_value(setting: Field) -> Any:
    if setting.least is None:
        return True
    return setting.kind(setting.least + 1) if setting.name[:5] != "rate_" else 0.125


def test_settings_are_the_fields_of_the_configuration_each_with_its_meaning() -> None:
    assert [setting.name for setting in SETTINGS] == list(MockConfig.__struct_fields__)
    assert all(len(setting.meaning) > 10 for setting in SETTINGS)


def test_options_without_any_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _set_by_options(monkeypatch) == MockConfig()


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_option_and_config_change_the_same_setting(setting: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    value = _another_value(setting)
    words = [setting.option] if setting.least is None else [setting.option, str(value)]
    by_options = _set_by_options(monkeypatch, *words)
    assert by_options == configured({setting.name: value})
    assert getattr(by_options, setting.name) == value != setting.default


@pytest.mark.parametrize("setting", [each for each in SETTINGS if each.least is not None], ids=lambda each: each.name)
@pytest.mark.parametrize("is_above", [False, True], ids=["below", "above"])
def test_value_outside_its_range_is_refused_either_way(setting: Field, is_above: bool) -> None:
    assert setting.least is not None
    assert setting.most is not None
    value = setting.most + 1 if is_above else setting.least - 1
    with pytest.raises(Rejected, match=setting.name):
        configured({setting.name: value})
    done = CliRunner().invoke(app, ["mock-llm", setting.option, str(value)])
    assert done.exit_code == 2
    assert setting.option in done.output


def test_rates_that_exceed_one_together_are_refused_in_words() -> None:
    done = CliRunner().invoke(app, ["mock-llm", "--rate-429", "0.5", "--rate-500", "0.25", "--rate-cut", "0.5"])
    assert done.exit_code == 2
    assert "together at most 1, not 1.25" in " ".join(re.sub("[│╭╮╰╯─]", " ", done.output).split())
    with pytest.raises(Rejected, match=r"together at most 1, not 1\.25"):
        configured({"rate_silence": 1.0}, since=MockConfig(rate_429=0.25))


@pytest.mark.parametrize("shares", [(0.7, 0.2, 0.1, 0.0), (0.1, 0.2, 0.3, 0.4), (0.25, 0.25, 0.25, 0.25)])
def test_rates_that_make_one_are_taken_however_they_round(shares: tuple[float, ...]) -> None:
    names = ("rate_429", "rate_500", "rate_cut", "rate_silence")
    configured(dict(zip(names, shares, strict=True)))


def test_number_that_is_none_is_refused() -> None:
    with pytest.raises(Rejected, match="rate_cut"):
        configured({"rate_cut": float("nan")})


@pytest.mark.parametrize("changes", [{"tokenz": 3}, {"tokens": "3"}, {"tokens": 2.5}, {"stamp": 1}])
def test_change_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match=next(iter(changes))):
        configured(changes)


def test_change_keeps_the_rest() -> None:
    before = MockConfig(tokens=3, echo=True, retry_after_seconds=2)
    after = configured({"tokens": 4, "retry_after_seconds": None}, since=before)
    assert msgspec.to_builtins(after) == {**msgspec.to_builtins(before), "tokens": 4, "retry_after_seconds": None}


def test_unknown_option_is_refused() -> None:
    done = CliRunner().invoke(app, ["mock-llm", "--tokenz", "3"])
    assert done.exit_code == 2
    assert "--tokenz" in done.output


def test_command_is_one_of_the_program() -> None:
    assert "mock-llm" in get_command(app).commands  # type: ignore[attr-defined]  # a group
