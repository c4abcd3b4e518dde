"""The compose files, as far as they can be held without Docker: the specification, the settings, the house's rules."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
import typer.main
from ruamel.yaml import YAML

from duologue import __version__, cli
from duologue.config import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/compose"
GUIDE = ROOT / "docs/operations/docker.md"

FILES: Final = sorted(path.name for path in FOLDER.glob("*.yaml"))
ENGINES: Final = {"kafka", "postgres", "valkey"}
ROLES: Final = {"websocket-server", "ai-consumer", "message-relay", "api"}
ONE_SHOT: Final = {"migrate"}
SECRETS: Final = {"JWT_SECRET", "POSTGRES_PASSWORD", "REDIS_PASSWORD"}

_VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z_]+)(:?[-?+]?)")
_NAMED_SECRET = re.compile(r"SECRET|PASSWORD|_KEY|AUTH$|TOKEN")
_RANDOM = re.compile(r"(?=[A-Za-z+_-]*[0-9])[A-Za-z0-9+_-]{24,}")


def _load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = YAML(typ="safe").load(FOLDER / name)
    return content


def _services() -> dict[str, dict[str, Any]]:
    return {**_load("dependencies.yaml")["services"], **_load("backend.yaml")["services"]}


SERVICES: Final = _services()
OF_OUR_IMAGE: Final = sorted(name for name, service in SERVICES.items() if "DUOLOGUE_IMAGE" in service["image"])


def _scalars(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _scalars(key)
            yield from _scalars(value)
    elif isinstance(node, list):
        for value in node:
            yield from _scalars(value)
    else:
        yield str(node)


def _default(value: str) -> str:
    """Return what a value is when none of its variables is set."""
    return re.sub(r"\$\{[A-Z_]+:-([^{}]*)\}", r"\1", value)


def _seconds(duration: str) -> float:
    found = re.fullmatch(r"(\d+)s", _default(duration))
    assert found, f"{duration} is not a number of seconds"
    return float(found[1])


def _validate(*files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# What the specification says


def test_compose_files_compared_with_the_specification_are_valid() -> None:
    result = _validate(*(FOLDER / name for name in FILES))
    assert result.returncode == 0, result.stdout + result.stderr


def test_compose_file_with_an_unknown_word_is_not_valid(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {a: {image: a, readonly: true}}\n")
    assert _validate(tmp_path / "compose.yaml").returncode == 1


def test_compose_files_that_are_included_exist() -> None:
    included = [part if isinstance(part, str) else part["path"] for part in _load("compose.yaml")["include"]]
    names = [name for part in included for name in ([part] if isinstance(part, str) else part)]
    assert sorted([*names, "compose.yaml"]) == FILES


def test_files_that_services_mount_or_build_from_exist() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    sources = [mount.split(":")[0] for mount in mounts if mount.startswith(".")]
    sources += [f"{build['context']}/{build['dockerfile']}" for s in SERVICES.values() if (build := s.get("build"))]
    assert sources
    assert not [source for source in sources if not (FOLDER / source).exists()]


def test_services_name_only_networks_volumes_and_services_that_there_are() -> None:
    for name in ("dependencies.yaml", "backend.yaml"):
        content = _load(name)
        for service in content["services"].values():
            assert set(service["networks"]) <= set(content["networks"])
            named = {mount.split(":")[0] for mount in service.get("volumes", []) if not mount.startswith(".")}
            assert named <= set(content.get("volumes", {}))
            assert set(service.get("depends_on", {})) <= set(content["services"])
    for service in _load("backend-after-dependencies.yaml")["services"].values():
        assert set(service["depends_on"]) <= ENGINES


def test_services_stop_in_the_order_in_which_the_last_frames_go() -> None:
    """Compose stops who depends before whom it depends on."""
    order = ["ai-consumer", "message-relay", "websocket-server"]
    for earlier, later in pairwise(order):
        assert SERVICES[earlier]["depends_on"][later] == {"condition": "service_started"}


# What the house asks of every service


@pytest.mark.parametrize("service", SERVICES)
def test_service_runs_an_image_of_one_version(service: str) -> None:
    image = _default(SERVICES[service]["image"])
    assert re.fullmatch(r"[a-z/]+:\d+\.\d+(\.\d+)?(-[a-z0-9.]+)?", image)
    if service in OF_OUR_IMAGE:
        assert image == f"duologue:{__version__}"


@pytest.mark.parametrize("service", sorted(SERVICES.keys() - ONE_SHOT))
def test_service_that_stays_has_a_health_check_and_is_started_again(service: str) -> None:
    check = SERVICES[service]["healthcheck"]
    assert check["test"][0] in {"CMD", "CMD-SHELL"}
    assert {"interval", "timeout", "retries", "start_period"} <= check.keys()
    assert SERVICES[service]["restart"] == "unless-stopped"


@pytest.mark.parametrize("service", sorted(ONE_SHOT))
def test_service_that_ends_is_waited_for_by_every_role(service: str) -> None:
    assert SERVICES[service]["healthcheck"] == {"disable": True}
    assert SERVICES[service]["restart"].startswith("on-failure")
    for role in ROLES:
        assert SERVICES[role]["depends_on"][service] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize("service", SERVICES)
def test_service_has_bounds_and_no_privileges(service: str) -> None:
    described = SERVICES[service]
    limits = described["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory", "pids"}
    assert described["cap_drop"] == ["ALL"]
    assert described["security_opt"] == ["no-new-privileges:true"]
    assert described["read_only"] is True
    assert described["logging"]["options"].keys() == {"max-size", "max-file"}
    assert not described.keys() & {"container_name", "privileged", "cap_add", "network_mode", "pid", "ipc"}


@pytest.mark.parametrize("service", sorted(SERVICES.keys() - {"kafka"} - set(OF_OUR_IMAGE)))
def test_service_of_an_image_that_would_start_as_root_names_another_user(service: str) -> None:
    assert SERVICES[service]["user"] not in {"root", "0"}


@pytest.mark.parametrize("mount", [(name, each) for name, s in SERVICES.items() for each in s.get("tmpfs", [])])
def test_folder_in_memory_has_a_bound(mount: tuple[str, str]) -> None:
    assert re.search(r"[:,]size=\d+m", mount[1])


def test_websocket_server_has_512_mb_and_one_cpu() -> None:
    limits = SERVICES["websocket-server"]["deploy"]["resources"]["limits"]
    assert (limits["memory"], limits["cpus"]) == ("512M", "1")
    assert _default(SERVICES["websocket-server"]["deploy"]["replicas"]) == "2"


@pytest.mark.parametrize("service", sorted({*ROLES, "nginx"}))
def test_service_that_drains_is_given_the_time_to(service: str) -> None:
    settings = Settings()
    assert _seconds(SERVICES[service]["stop_grace_period"]) > settings.drain_seconds + settings.drain_spread_seconds


# Who reaches whom


def test_ports_are_published_by_nginx_alone_and_through_the_variable_of_the_address() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["nginx"]
    ports = SERVICES["nginx"]["ports"]
    assert all(port.startswith("${NGINX_HOST:-127.0.0.1}:") for port in ports)
    published = [_default(port).removeprefix("127.0.0.1:") for port in ports]
    assert published == ["8080:8080", "8000:8000", "8004:8004"]
    listening = re.findall(r"^listen (\d+)", (ROOT / "deploy/nginx/duologue.d/listen.conf").read_text(), re.MULTILINE)
    assert sorted(listening) == sorted(port.split(":")[1] for port in published)


def test_engines_are_on_a_network_without_a_way_out() -> None:
    assert all(SERVICES[engine]["networks"] == ["engines"] for engine in ENGINES)
    assert _load("dependencies.yaml")["networks"]["engines"] == {"internal": True}
    assert _load("backend.yaml")["networks"]["engines"] == {"internal": True}
    assert list(SERVICES["nginx"]["networks"]) == ["backend"]


def test_roles_believe_the_address_of_nginx_which_no_other_container_gets() -> None:
    address = SERVICES["nginx"]["networks"]["backend"]["ipv4_address"]
    assert all(SERVICES[role]["environment"]["TRUSTED_PROXIES"] == address for role in ROLES)
    [pool] = _load("backend.yaml")["networks"]["backend"]["ipam"]["config"]
    ours = ip_address(_default(address))
    assert ours in ip_network(_default(pool["subnet"]))
    assert ours not in ip_network(_default(pool["ip_range"]))
    assert ours != ip_address(_default(pool["gateway"]))


@pytest.mark.parametrize(("file", "role"), [("websocket-servers", "websocket-server"), ("api-servers", "api")])
def test_nginx_finds_each_role_by_the_name_and_port_of_its_service(file: str, role: str) -> None:
    servers = (ROOT / f"deploy/nginx/duologue.d/{file}.conf").read_text()
    assert re.findall(r"^server (\S+) resolve", servers, re.MULTILINE) == [
        f"{role}:{SERVICES[role]['environment']['PORT']}"
    ]
    assert "backend" in SERVICES[role]["networks"]


# Settings, compose files, `.env.example` and secrets


def test_settings_compose_files_and_example_file_name_the_same_variables() -> None:
    settings = {name.upper() for name in Settings.model_fields}
    examples = set(re.findall(r"^# ([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert examples == settings
    for service in OF_OUR_IMAGE:
        assert set(SERVICES[service].get("environment", {})) <= settings, service


@pytest.mark.parametrize("role", sorted(ROLES | ONE_SHOT))
def test_role_is_a_command_that_there_is_and_gets_what_roles_share(role: str) -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]  # a group, which its type hides
    assert SERVICES[role]["command"] == [role]
    assert role in commands
    environment = SERVICES[role]["environment"]
    shared = {"KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL", "DATABASE_URL", "JWT_SECRET"}
    assert shared <= environment.keys()
    assert environment["HOST"] == "0.0.0.0"
    assert {str(file["path"]): file["required"] for file in SERVICES[role]["env_file"]} == {"../../.env": False}


@pytest.mark.parametrize("service", SERVICES)
def test_service_holds_no_secret(service: str) -> None:
    environment: dict[str, Any] = SERVICES[service].get("environment", {})
    for name, value in environment.items():
        if _NAMED_SECRET.search(name):
            assert re.match(r"\$\{[A-Z_]+:\?", str(value)), name
        if found := re.search(r"://[^/@:]*:([^@]+)@", str(value)):
            assert re.match(r"\$\{[A-Z_]+:\?", found[1]), name
    words = [word for scalar in _scalars(SERVICES[service]) for word in _RANDOM.findall(scalar)]
    assert not words


@pytest.mark.parametrize("name", FILES)
def test_compose_file_without_its_secrets_says_what_to_do(name: str) -> None:
    text = (FOLDER / name).read_text()
    for variable, operator in _VARIABLE.findall(text):
        assert operator == (":?" if variable in SECRETS else ":-"), variable
    assert all("secrets.sh" in line for line in text.splitlines() if ":?" in line)


def test_guide_explains_every_variable_of_the_compose_files() -> None:
    used = {found[0] for name in FILES for found in _VARIABLE.findall((FOLDER / name).read_text())}
    guide = GUIDE.read_text()
    assert used > SECRETS
    assert not [variable for variable in sorted(used) if f"`{variable}`" not in guide]


# secrets.sh


def _make_secrets(folder: Path) -> dict[str, str]:
    subprocess.run([folder / "deploy/compose/secrets.sh"], check=True, cwd="/", env={"PATH": os.environ["PATH"]})
    lines = (folder / "deploy/compose/.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder like the repository's, with a space in its name."""
    folder = tmp_path / "a checkout"
    (folder / "deploy/compose").mkdir(parents=True)
    shutil.copy(FOLDER / "secrets.sh", folder / "deploy/compose")
    return folder


def test_secrets_are_made_once_for_their_owner_alone(checkout: Path) -> None:
    made = _make_secrets(checkout)
    assert made.keys() == SECRETS
    assert len(set(made.values())) == 3
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in made.values())
    assert stat.S_IMODE((checkout / "deploy/compose/.env").stat().st_mode) == 0o600
    assert _make_secrets(checkout) == made


def test_secrets_beside_other_variables_leave_those_and_make_what_is_missing(checkout: Path) -> None:
    env = checkout / "deploy/compose/.env"
    env.write_text("NGINX_PORT=9080\nREDIS_PASSWORD=mine\nPOSTGRES_PASSWORD=\n")
    env.chmod(0o644)
    made = _make_secrets(checkout)
    assert (made["NGINX_PORT"], made["REDIS_PASSWORD"]) == ("9080", "mine")
    assert made["POSTGRES_PASSWORD"]
    assert stat.S_IMODE(env.stat().st_mode) == 0o600


def test_secrets_in_a_repository_that_has_its_own_key_take_it(checkout: Path) -> None:
    made = _make_secrets(checkout)
    (checkout / ".env").write_text(f"LOG_LEVEL=DEBUG\nJWT_SECRET={'k' * 32}\n")
    again = _make_secrets(checkout)
    assert again == {**made, "JWT_SECRET": "k" * 32}
