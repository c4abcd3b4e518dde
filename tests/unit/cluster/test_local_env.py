"""`deploy/local.env`: complete, checked, and overruled by the environment."""

from pathlib import Path

import pytest

from duologue.cluster.local_env import LOCAL_ENV, LocalEnv, example_file, read_local_env
from duologue.config import Settings
from duologue.domain.errors import StartRefused

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LocalEnv.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def _read(root: Path, *lines: str) -> LocalEnv:
    (root / LOCAL_ENV).parent.mkdir()
    (root / LOCAL_ENV).write_text("".join(f"{line}\n" for line in lines))
    return read_local_env(root)


def test_local_env_compared_with_its_declarations_is_complete() -> None:
    assert (ROOT / LOCAL_ENV).read_text() == example_file()


def test_local_env_as_delivered_has_two_websocket_servers_behind_nginx() -> None:
    env = read_local_env(ROOT)
    assert (env.nginx_port, env.nginx_gateway_port, env.nginx_chat_port) == (8080, 8000, 8004)
    assert (env.websocket_servers, env.ai_consumers, env.message_relays, env.apis) == (2, 1, 1, 1)


def test_local_env_beside_the_settings_has_no_name_in_common() -> None:
    assert not set(LocalEnv.model_fields) & set(Settings.model_fields)


def test_read_local_env_with_an_unknown_name_proposes_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="NGINX_PROT is not a setting; did you mean NGINX_PORT"):
        _read(tmp_path, "NGINX_PROT=9080")


def test_read_local_env_beside_the_environment_gives_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NGINX_PORT", "9081")
    assert _read(tmp_path, "NGINX_PORT=9080", "APIS=2").nginx_port == 9081


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("NGINX_PORT=many", "NGINX_PORT: input should be a valid integer"),
        ("KAFKA_PORT=70000", "KAFKA_PORT: input should be less than or equal to 65535"),
        ("AI_CONSUMERS=0", "AI_CONSUMERS: input should be greater than or equal to 1"),
        ("API_PORT=18101", "port 18101 is given twice, by WEBSOCKET_SERVER_PORT and API_PORT"),
        ("NGINX_PORT=8000", "port 8000 is given twice, by NGINX_PORT and NGINX_GATEWAY_PORT"),
        ("API_PORT=65535\nAPIS=2", "API_PORT: 65536 is no port"),
    ],
)
def test_read_local_env_with_a_wrong_value_says_which(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(StartRefused, match=words):
        _read(tmp_path, line)


def test_read_local_env_in_another_folder_says_where_to_go(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match=r"local\.env is missing: run this in the repository's folder"):
        read_local_env(tmp_path)
