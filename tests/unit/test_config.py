"""Settings: parsing, refusals in words, and the example file."""

from pathlib import Path

import pytest

from duologue.config import Settings, example_file, load_settings
from duologue.domain.errors import StartRefused

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_env_example_compared_with_settings_is_complete() -> None:
    assert (ROOT / ".env.example").read_text() == example_file()


def test_settings_without_any_variable_are_the_embedded_defaults(tmp_path: Path) -> None:
    settings = load_settings(tmp_path / ".env")
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert settings.builtin_model
    assert settings.workers == 2
    assert settings.server_id


def test_settings_with_a_provider_use_many_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    settings = load_settings(tmp_path / ".env")
    assert not settings.builtin_model
    assert settings.workers == 64


def test_environment_beside_env_file_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=1\nALLOWED_MODELS=a, b\n")
    monkeypatch.setenv("PORT", "2")
    settings = load_settings(tmp_path / ".env")
    assert settings.port == 2
    assert settings.allowed_models == ["a", "b"]


def test_misspelt_name_in_env_file_is_refused_with_the_right_one(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OPENAI_BASEURL=http://x\n")
    with pytest.raises(StartRefused, match="OPENAI_BASEURL is not a setting; did you mean OPENAI_BASE_URL"):
        load_settings(tmp_path / ".env")


def test_unlike_name_in_env_file_is_refused_without_a_guess(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("ZZZ=1\n")
    with pytest.raises(StartRefused, match=r"ZZZ is not a setting\."):
        load_settings(tmp_path / ".env")


@pytest.mark.parametrize(("name", "value"), [("PORT", "99999"), ("PORT", "http"), ("LOG_LEVEL", "LOUD")])
def test_invalid_value_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StartRefused, match=f"^{name}: "):
        load_settings(tmp_path / ".env")


def test_trusted_proxies_are_read_as_networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRUSTED_PROXIES", "10.0.0.7, 10.1.2.3/8,2001:DB8::/32")
    assert load_settings(tmp_path / ".env").trusted_proxies == ["10.0.0.7/32", "10.0.0.0/8", "2001:db8::/32"]


@pytest.mark.parametrize("value", ["*", "nginx", "10.0.0.0/33", "10.0.0.1-10.0.0.9"])
def test_trusted_proxy_that_would_match_nothing_or_all_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str
) -> None:
    monkeypatch.setenv("TRUSTED_PROXIES", value)
    with pytest.raises(StartRefused, match=r"^TRUSTED_PROXIES: '.*' is neither an address nor a network"):
        load_settings(tmp_path / ".env")


def test_invalid_secret_is_refused_without_telling_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.setenv("PORT", "nonsense")
    with pytest.raises(StartRefused) as refused:
        load_settings(tmp_path / ".env")
    assert "sk-very-secret" not in str(refused.value)


@pytest.mark.parametrize("line", ["MAX_FRAME_BYTES=900001", "MAX_METADATA_BYTES=65537"])
def test_setting_with_which_a_message_would_not_fit_into_a_record_is_refused(tmp_path: Path, line: str) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(line)
    with pytest.raises(StartRefused, match=line.partition("=")[0]):
        load_settings(env_file)
