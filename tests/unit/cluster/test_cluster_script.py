"""`deploy/cluster.sh`: which engine it takes, and what it asks of it. Docker and the rest are stand-ins that write down
how they are called."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
_STAND_IN = '#!/bin/sh\necho "${0##*/} $*" >>"$CALLS"\n'
_NO_COMPOSE = "#!/bin/sh\nexit 1\n"
_NO_DAEMON = _STAND_IN + '[ "$1" != info ]\n'
_COMMANDS = ["start", "start-dependencies", "start-backend", "stop", "restart", "status", "logs", "clean"]


class _Repository:
    """A folder with the script, its files, and stand-ins for all programs that it calls."""

    def __init__(self, root: Path, docker: str) -> None:
        self.root = root
        self._calls = root / "calls"
        (root / "deploy/compose").mkdir(parents=True)
        shutil.copy(ROOT / "deploy/cluster.sh", root / "deploy")
        shutil.copy(ROOT / "deploy/local.env", root / "deploy")
        (root / "deploy/compose/secrets.sh").write_text("")
        for name, text in {
            "programs/make": _STAND_IN,
            ".venv/bin/python": _STAND_IN,
            "programs/docker": docker,
        }.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
            (root / name).chmod(0o700)

    def run(self, command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        path = f"{self.root / 'programs'}:/usr/bin:/bin"
        given = {"PATH": path, "CALLS": str(self._calls), "HOME": os.environ["HOME"], **environment}
        return subprocess.run(
            ["bash", self.root / "deploy/cluster.sh", command], env=given, capture_output=True, text=True, check=False
        )

    def calls(self) -> list[str]:
        """Return what was called, but the questions whether there is a Docker."""
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        return [line for line in lines if line not in {"docker compose version", "docker info"}]


@pytest.mark.parametrize("command", _COMMANDS)
@pytest.mark.parametrize("docker", [_NO_COMPOSE, _NO_DAEMON], ids=["no compose", "no daemon"])
def test_script_without_docker_runs_processes_of_this_user(tmp_path: Path, docker: str, command: str) -> None:
    repository = _Repository(tmp_path / "a clone", docker)
    assert repository.run(command, FORCE="1").returncode == 0
    assert repository.calls() == [
        "make --silent --no-print-directory install-cluster compiled",
        f"python -m duologue.cluster {command}",
    ]


@pytest.mark.parametrize("command", _COMMANDS)
def test_script_with_docker_uses_the_compose_files(tmp_path: Path, command: str) -> None:
    repository = _Repository(tmp_path / "a clone", _STAND_IN)
    done = repository.run(command, FORCE="1")
    assert done.returncode == 0, done.stderr
    calls = repository.calls()
    assert calls
    assert all(
        call.startswith("docker compose --env-file deploy/local.env --env-file deploy/compose/.env") for call in calls
    )


def test_script_with_docker_restarts_role_after_role_behind_the_migration(tmp_path: Path) -> None:
    repository = _Repository(tmp_path, _STAND_IN)
    repository.run("restart")
    asked = [call.partition("compose.yaml ")[2] for call in repository.calls()]
    assert asked[:2] == ["build", "run --rm migrate"]
    assert [call.rpartition(" ")[2] for call in asked[2:]] == [
        "message-relay",
        "ai-consumer",
        "api",
        "websocket-server",
    ]


def test_script_with_docker_follows_one_service(tmp_path: Path) -> None:
    repository = _Repository(tmp_path, _STAND_IN)
    repository.run("logs", SERVICE="api")
    assert repository.calls()[0].endswith("logs --follow --tail 10 api")


@pytest.mark.parametrize(
    ("line", "models"),
    [
        ("OPENAI_API_KEY=sk-1", "0"),
        ("# OPENAI_API_KEY=", ""),
        ("", ""),
        ("OPENAI_API_KEY=sk-1\nFALLBACK_MODELS=small,builtin", ""),
        ("OPENAI_API_KEY=sk-1\nFALLBACK_MODELS=small", "0"),
    ],
)
def test_script_with_docker_and_a_provider_serves_no_model(tmp_path: Path, line: str, models: str) -> None:
    repository = _Repository(tmp_path, '#!/bin/sh\necho "models=$BUILTIN_MODELS" >>"$CALLS"\n')
    (tmp_path / ".env").write_text(f"{line}\n")
    repository.run("start")
    assert repository.calls()[-1] == f"models={models}"


def test_script_told_local_leaves_docker_alone(tmp_path: Path) -> None:
    repository = _Repository(tmp_path, _STAND_IN)
    repository.run("status", ENGINE="local")
    assert repository.calls()[-1] == "python -m duologue.cluster status"


def test_script_told_docker_does_not_ask_whether_it_is_there(tmp_path: Path) -> None:
    repository = _Repository(tmp_path, _NO_DAEMON)
    repository.run("status", ENGINE="docker")
    assert repository.calls()[-1].endswith("ps --all")


def test_script_told_another_engine_refuses(tmp_path: Path) -> None:
    done = _Repository(tmp_path, _STAND_IN).run("status", ENGINE="podman")
    assert done.returncode == 1
    assert "ENGINE=podman is not known: it is local or docker." in done.stderr


def test_script_beside_a_local_cluster_that_runs_keeps_to_it(tmp_path: Path) -> None:
    repository = _Repository(tmp_path, _STAND_IN)
    (tmp_path / ".cluster").mkdir()
    (tmp_path / ".cluster/supervisord.pid").write_text(f"{os.getpid()}\n")
    repository.run("stop")
    assert repository.calls()[-1] == "python -m duologue.cluster stop"
    (tmp_path / ".cluster/supervisord.pid").write_text("4194304\n")  # no process has this id
    repository.run("stop")
    assert repository.calls()[-1].endswith("stop")
    assert repository.calls()[-1].startswith("docker compose")


def test_script_asked_to_clean_without_an_answer_removes_nothing(tmp_path: Path) -> None:
    repository = _Repository(tmp_path, _STAND_IN)
    assert repository.run("clean").returncode != 0
    assert repository.calls() == []
