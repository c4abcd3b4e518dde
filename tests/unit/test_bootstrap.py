"""The composition root, as far as it decides something itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from duologue.bootstrap import ROLES, RoleName, migrate_database, run_role
from duologue.bootstrap.models import open_models
from duologue.bootstrap.parts import provider_state
from duologue.config import Settings
from duologue.domain.errors import StartRefused
from duologue.llm.breaker import BreakerPolicy, CircuitBreaker
from duologue.llm.choice import Provider
from duologue.llm.port import ModelRefused, ModelTemporaryError
from duologue.llm.scripted import ScriptedModel


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_migrate_in_a_folder_that_others_may_read_makes_the_database_for_its_owner_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    migrate_database(Settings(data_dir=tmp_path), sql=False)
    assert stat.S_IMODE((tmp_path / "duologue.db").stat().st_mode) == 0o600


def test_migrate_where_no_folder_can_be_made_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StartRefused, match=r"cannot be used: .*; set DATA_DIR"):
        migrate_database(Settings(data_dir=tmp_path / "data"), sql=False)


_SHARED: dict[str, Any] = {
    "jwt_secret": "s" * 32,
    "kafka_bootstrap_servers": "127.0.0.1:1",
    "redis_url": "redis://127.0.0.1:1",
    "database_url": "postgresql://duologue@127.0.0.1:1/duologue",
}


@pytest.mark.parametrize("role", ROLES)
async def test_role_without_anything_names_all_that_it_lacks(role: RoleName) -> None:
    with pytest.raises(StartRefused) as refused:
        await run_role(role, Settings())
    lacking = [line.strip().split(":")[0] for line in str(refused.value).splitlines()[1:]]
    assert lacking == ["JWT_SECRET", "REDIS_URL (or REDIS_HOST)", "KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL"]


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("jwt_secret", "JWT_SECRET: the key"),
        ("redis_url", "REDIS_URL"),
        ("database_url", "DATABASE_URL: the PostgreSQL"),
    ],
)
async def test_role_without_one_thing_names_that_alone(missing: str, words: str) -> None:
    with pytest.raises(StartRefused) as refused:
        await run_role("api", Settings(**{**_SHARED, missing: ""}))
    [lacking] = str(refused.value).splitlines()[1:]
    assert words in lacking


async def test_role_with_a_database_of_one_process_is_refused() -> None:
    with pytest.raises(StartRefused, match="SQLite is for one process"):
        await run_role("ai-consumer", Settings(**{**_SHARED, "database_url": "sqlite:///duologue.db"}))


async def test_role_with_a_short_secret_is_refused() -> None:
    with pytest.raises(StartRefused, match="JWT_SECRET must have 32 characters"):
        await run_role("api", Settings(**{**_SHARED, "jwt_secret": "short"}))


@pytest.mark.parametrize(
    "failure",
    [ModelTemporaryError("it loads", cause="loading"), ModelRefused("the key was refused", cause="http_401")],
    ids=str,
)
async def test_model_that_cannot_answer_is_shown_and_holds_nothing_up(
    failure: ModelTemporaryError | ModelRefused,
) -> None:
    model = ScriptedModel([])
    model.failure = failure
    assert await provider_state(Provider.of(model)) == str(failure)


async def test_model_with_the_address_of_a_shared_one_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duologue.bootstrap.models.open_builtin", None)
    settings = Settings(builtin_model_url="http://127.0.0.1:1")
    async with open_models(settings, None) as models:
        with pytest.raises(ModelTemporaryError):
            await models.first.model.check()
    assert settings.workers == 2


async def test_provider_whose_breaker_is_open_is_shown_and_holds_nothing_up() -> None:
    breaker = CircuitBreaker("p", BreakerPolicy(min_tries=1, min_askers=1))
    provider = Provider(ScriptedModel([]), breaker)
    assert await provider_state(provider) is None
    permit = breaker.admit("reply")
    assert permit is not None
    failure = ModelTemporaryError("away", cause="http_503")
    permit.__exit__(type(failure), failure, None)
    assert await provider_state(provider) == "its circuit breaker is open"


async def test_models_at_one_address_share_a_provider_and_others_have_their_own() -> None:
    settings = Settings(
        openai_base_url="http://127.0.0.1:1/v1/",
        openai_api_key=SecretStr("sk-first"),
        openai_model="one",
        fallback_models=[
            "small",
            "two@http://127.0.0.1:2/v1",
            "three@http://127.0.0.1:2/v1",
            "one@http://127.0.0.1:1/v1",
        ],
    )
    async with open_models(settings, None) as models:
        assert [provider.name for provider in models.providers] == ["127.0.0.1:1", "127.0.0.1:2"]
        assert models.first.model.name == "one"
        named = [(candidate.provider.name, candidate.name) for candidate in models.candidates(None)]
    assert named == [("127.0.0.1:1", "one"), ("127.0.0.1:1", "small"), ("127.0.0.1:2", "two"), ("127.0.0.1:2", "three")]


async def test_two_keys_of_one_host_are_two_providers_with_names_of_their_own() -> None:
    settings = Settings(
        openai_base_url="http://127.0.0.1:1/v1",
        fallback_models=["one@http://127.0.0.1:1/v1"],
        fallback_api_keys=SecretStr("127.0.0.1:1=sk-second"),
    )
    async with open_models(settings, None) as models:
        assert [provider.name for provider in models.providers] == ["127.0.0.1:1", "127.0.0.1:1#2"]


async def test_built_in_model_stands_in_for_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duologue.bootstrap.models.open_builtin", None)
    settings = Settings(
        openai_base_url="http://127.0.0.1:1/v1", fallback_models=["builtin"], builtin_model_url="http://127.0.0.1:2"
    )
    async with open_models(settings, None) as models:
        assert [provider.name for provider in models.providers] == ["127.0.0.1:1", "builtin"]
        assert settings.workers == 64
