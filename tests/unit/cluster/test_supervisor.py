"""supervisord's configuration: what is written, as supervisord itself and a shell read it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from supervisor.options import UnhosedConfigParser

from duologue.cluster.supervisor import Supervised, render_config

_VALUES = [
    "plain",
    "a b  c",
    "50% of %(here)s",
    "it's",
    'a "b"',
    "a,b=c",
    "semi ; colon # hash",
    "$HOME `id` $(id)",
    "back\\slash",
    "two\nlines",
    "é ☃",
]


def _program(folder: Path, *, command: tuple[str, ...] = ("true",), **environment: str) -> Supervised:
    return Supervised(name="a-1", command=command, environment=environment, folder=folder)


def _parsed(*programs: Supervised) -> UnhosedConfigParser:
    parser = UnhosedConfigParser()
    parser.read_string(render_config(programs, Path("/tmp/supervisor.sock"), "secret"))
    return parser


@pytest.mark.parametrize("value", _VALUES)
def test_script_gives_values_arguments_and_folder_as_they_are(tmp_path: Path, value: str) -> None:
    folder = tmp_path / value.replace("\n", " ")
    folder.mkdir()
    tell = "import json, os, sys; print(json.dumps([os.environ['VALUE'], sys.argv[1], os.getcwd()]))"
    program = _program(folder, command=(sys.executable, "-c", tell, value), VALUE=value)
    done = subprocess.run(["/bin/sh"], input=program.script(), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [value, value, str(folder)]


def test_config_in_a_folder_with_any_name_holds_no_path_but_that_of_the_socket(tmp_path: Path) -> None:
    text = render_config([_program(tmp_path / "a b % ;")], Path("/tmp/s.sock"), "secret")
    assert [line for line in text.splitlines() if "/" in line and "=" in line] == [
        "logfile=logs/supervisord.log",
        "file=/tmp/s.sock",
        "command=/bin/sh programs/a-1.sh",
        "stdout_logfile=logs/a-1.log",
    ]


def test_config_of_a_changed_program_differs_though_its_command_is_the_same(tmp_path: Path) -> None:
    before, after = (_parsed(_program(tmp_path, VALUE=value))["program:a-1"] for value in ("1", "2"))
    assert before["environment"] != after["environment"]
    assert before["command"] == after["command"]


def test_config_of_a_program_whose_files_have_changed_differs(tmp_path: Path) -> None:
    before, after = (_parsed(replace(_program(tmp_path), read=read))["program:a-1"] for read in ("1", "2"))
    assert before["environment"] != after["environment"]


def test_config_lets_programs_be_restarted_but_not_started_by_themselves(tmp_path: Path) -> None:
    section = _parsed(_program(tmp_path))["program:a-1"]
    assert (section["autostart"], section["autorestart"]) == ("false", "true")


def test_config_ends_what_stops_first_with_the_highest_priority(tmp_path: Path) -> None:
    first, last = (
        Supervised(name=name, command=("true",), folder=tmp_path, stop_turn=turn) for name, turn in (("a", 0), ("b", 4))
    )
    parser = _parsed(first, last)
    assert int(parser["program:a"]["priority"]) > int(parser["program:b"]["priority"])
