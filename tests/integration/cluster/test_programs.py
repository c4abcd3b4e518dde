"""What the local cluster runs, by its two files and the environment; looked up, not started."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.missing import needs_engine

from duologue.cluster import kafka, nginx
from duologue.cluster.local_env import LocalEnv
from duologue.cluster.local_secrets import local_secrets
from duologue.cluster.programs import STOP_ORDER, Group, Plan, Site, kind_of, plan
from duologue.cluster.server_process import EngineMissing
from duologue.config import Settings
from duologue.domain.errors import StartRefused

_DEFAULT = [
    "postgres",
    "kafka",
    "valkey",
    "model",
    "message-relay-1",
    "ai-consumer-1",
    "api-1",
    "websocket-server-1",
    "websocket-server-2",
    "nginx",
]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*Settings.model_fields, *LocalEnv.model_fields]:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    secrets = local_secrets(tmp_path, {})
    return Site(root=tmp_path, folder=tmp_path, env=LocalEnv(), settings=Settings(), secrets=secrets, environment={})


def _plan(site: Site, **changed: Any) -> Plan:
    with needs_engine(from_apt_get=True):
        return plan(replace(site, **changed))


def _environments(made: Plan, kind: str) -> list[dict[str, str]]:
    return [dict(each.supervised.environment) for each in made.programs if kind_of(each.name) == kind]


def test_plan_by_default_is_engines_model_roles_and_nginx(site: Site) -> None:
    made = _plan(site)
    assert [program.name for program in made.programs] == _DEFAULT
    assert [program.name for program in made.of(Group.DEPENDENCIES)] == ["postgres", "kafka", "valkey"]


def test_plan_gives_each_role_its_own_port_and_name_and_all_the_same_engines(site: Site) -> None:
    made = _plan(site, env=LocalEnv(websocket_servers=3))
    each = _environments(made, "websocket-server")
    assert [one["SERVER_ID"] for one in each] == [f"websocket-server-{number}" for number in (1, 2, 3)]
    assert [one["PORT"] for one in each] == ["18100", "18101", "18102"]
    shared = ["JWT_SECRET", "KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL", "DATABASE_URL", "TRUSTED_PROXIES"]
    assert len({tuple(one[name] for name in shared) for one in each}) == 1


def test_plan_with_every_port_of_its_own_names_all_that_listen(site: Site) -> None:
    made = _plan(site)
    ports = [port for program in made.programs for port in program.ports]
    assert sorted(ports) == sorted(port for _, port in site.env.ports())


@pytest.mark.parametrize(("consumers", "workers"), [(1, "2"), (2, "1"), (4, "1")])
def test_plan_without_a_provider_shares_the_built_in_model_out(site: Site, consumers: int, workers: str) -> None:
    made = _plan(site, env=LocalEnv(ai_consumers=consumers))
    for environment in _environments(made, "ai-consumer"):
        assert environment["BUILTIN_MODEL_URL"] == "http://127.0.0.1:18500"
        assert environment["BUILTIN_MODEL_KEY"] == site.secrets.model_key
        assert environment["MAX_WORKERS"] == workers


def test_plan_with_a_provider_that_the_built_in_model_stands_in_for_serves_it_to_all_workers(site: Site) -> None:
    made = _plan(site, settings=Settings(openai_base_url="http://provider/v1", fallback_models=["builtin"]))
    assert "model" in [program.name for program in made.programs]
    assert made.role_environment["BUILTIN_MODEL_URL"] == "http://127.0.0.1:18500"
    assert "MAX_WORKERS" not in made.role_environment


@pytest.mark.parametrize(
    "settings",
    [Settings(openai_base_url="http://provider/v1"), Settings(builtin_model_url="http://elsewhere")],
    ids=["provider", "built-in elsewhere"],
)
def test_plan_with_another_model_serves_none(site: Site, settings: Settings) -> None:
    made = _plan(site, settings=settings)
    assert "model" not in [program.name for program in made.programs]
    assert not {"OPENAI_BASE_URL", "BUILTIN_MODEL_URL", "MAX_WORKERS"} & made.role_environment.keys()


@pytest.mark.parametrize(
    ("settings", "away"),
    [
        (Settings(kafka_bootstrap_servers="kafka:9092"), "kafka"),
        (Settings(redis_url="redis://redis"), "valkey"),
        (Settings(redis_host="redis"), "valkey"),
        (Settings(database_url="postgresql://postgres/duologue"), "postgres"),
    ],
)
def test_plan_with_an_engine_that_the_settings_name_starts_none_of_its_own(
    site: Site, settings: Settings, away: str
) -> None:
    made = _plan(site, settings=settings)
    assert [program.name for program in made.programs] == [name for name in _DEFAULT if name != away]


def test_plan_passes_settings_of_the_environment_on_but_not_what_each_role_has_for_itself(site: Site) -> None:
    given = {"LOG_LEVEL": "DEBUG", "PORT": "1", "HOST": "0.0.0.0", "NGINX_PORT": "2", "PATH": "/bin"}
    made = _plan(site, environment=given)
    environment = made.role_environment
    assert environment["LOG_LEVEL"] == "DEBUG"
    assert not {"PORT", "HOST", "NGINX_PORT", "PATH"} & environment.keys()


def test_plan_with_a_jwt_secret_in_the_settings_takes_that(site: Site) -> None:
    made = _plan(site, settings=Settings(jwt_secret="x" * 40))  # type: ignore[arg-type]
    assert made.role_environment["JWT_SECRET"] == "x" * 40


def test_plan_with_a_short_jwt_secret_is_refused(site: Site) -> None:
    with pytest.raises(StartRefused, match="32 characters"):
        _plan(site, settings=Settings(jwt_secret="short"))  # type: ignore[arg-type]


def test_plan_stops_every_program_at_a_turn(site: Site) -> None:
    turns = [kind for kinds in STOP_ORDER for kind in kinds]
    assert {kind_of(program.name) for program in _plan(site).programs} == set(turns)
    last_frame = ["ai-consumer", "message-relay", "websocket-server", "nginx"]  # its way to its user
    assert [name for name in turns if name in last_frame] == last_frame


def test_plan_on_a_machine_without_programs_names_all_that_are_missing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(words: str) -> str:
        raise EngineMissing(words)

    monkeypatch.setattr(nginx, "nginx_program", lambda: missing("there is no nginx"))
    monkeypatch.setattr(kafka, "java", lambda: missing("there is no Java"))
    with pytest.raises(EngineMissing, match=r"there is no Java\nthere is no nginx"):
        plan(site)


def test_plan_with_signs_in_passwords_quotes_them_in_addresses(site: Site) -> None:
    made = _plan(site, secrets=replace(site.secrets, postgres_password="a/b@c:d", redis_password="e#f?g"))
    assert ":a%2Fb%40c%3Ad@" in made.role_environment["DATABASE_URL"]
    assert ":e%23f%3Fg@" in made.role_environment["REDIS_URL"]
