"""The program imports no more than the command that is asked for needs: every role pays for it at each start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from duologue.cli import app

_TELL_MODULES = """
import atexit, sys
atexit.register(lambda: print(*sys.modules))
from duologue.cli import main
main()
"""
_ELSEWHERE = ("duologue.bench", "duologue.dlq")


def _ended(*words: str, data_dir: Path, port: int) -> tuple[str, set[str]]:
    """Return what the program says until it ends, and the modules that it has imported."""
    environment = {**os.environ, "DATA_DIR": str(data_dir), "HOST": "127.0.0.1", "PORT": str(port)}
    done = subprocess.run(
        [sys.executable, "-c", _TELL_MODULES, *words],
        env=environment,
        cwd=data_dir,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stderr, set(done.stdout.split())


def test_up_until_its_port_is_open_has_imported_neither_bench_nor_dead_letters(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said, modules = _ended("up", data_dir=tmp_path, port=taken.getsockname()[1])
    assert "cannot listen on" in said  # so far it has come
    assert "duologue.config" in modules
    assert not [name for name in modules if name.startswith(_ELSEWHERE)]


def test_role_that_starts_has_imported_neither_bench_nor_dead_letters(tmp_path: Path) -> None:
    said, modules = _ended("message-relay", data_dir=tmp_path, port=0)
    assert "a role by itself needs" in said
    assert "duologue.bootstrap" in modules
    assert not [name for name in modules if name.startswith(_ELSEWHERE)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("up", "Start everything in one process"),
        ("chaos", "Try to break a system of its own"),
        ("mock-llm", "API without a model"),
        ("dlq", "Dead letters: messages and records"),
        ("bench", "Measure what Duologue costs"),
    ],
)
def test_help_lists_commands_wherever_they_are(name: str, words: str) -> None:
    done = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    (line,) = [line for line in done.output.splitlines() if words in line]
    assert line.split()[1] == name


def test_name_that_is_nearly_one_of_elsewhere_is_told_as_it_is() -> None:
    done = CliRunner().invoke(app, ["benchh"])
    assert done.exit_code == 2
    assert "Did you mean 'bench'?" in done.output
