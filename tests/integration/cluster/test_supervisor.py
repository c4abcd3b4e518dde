"""A real supervisord: programs in a folder with an awkward name, kept running, changed, stopped, orphaned."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from duologue.cluster.supervisor import State, Supervised, Supervisor
from duologue.domain.errors import StartRefused

_DEADLINE_SECONDS = 20.0
_AWKWARD = ["with blanks, 100% of 'all'; \"signs\" # and é", "long " + "x" * 100]
_SLEEP = "import time; print('up', flush=True); time.sleep(600)"
_STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="duologue-") as made:
        folder = Path(made) / getattr(request, "param", "cluster")
        folder.mkdir()
        yield folder


@pytest.fixture
def supervisor(folder: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(folder, "secret")
    yield supervisor
    supervisor.shutdown()


def _program(folder: Path, code: str = _SLEEP, name: str = "a-1", **environment: str) -> Supervised:
    return Supervised(
        name=name, command=[sys.executable, "-c", code], environment=environment, folder=folder, stop_seconds=1
    )


def _start(supervisor: Supervisor, *programs: Supervised) -> None:
    supervisor.configure(programs)
    supervisor.start_daemon(os.environ)
    for program in programs:
        supervisor.start(program.name)
        _said(supervisor, program.name, "up")


def _wait(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _said(supervisor: Supervisor, name: str, words: str) -> None:
    _wait(lambda: words in _log(supervisor, name))


def _log(supervisor: Supervisor, name: str) -> str:
    path = supervisor.logs / f"{name}.log"
    return path.read_text() if path.exists() else ""


def _own_pid(supervisor: Supervisor) -> int:
    return int((supervisor.folder / "supervisord.pid").read_text())


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("folder", _AWKWARD, indirect=True, ids=["signs", "long"])
def test_supervisor_in_a_folder_with_an_awkward_name_runs_a_program_in_it(supervisor: Supervisor) -> None:
    tell = f"import os; print(os.getcwd(), os.environ['VALUE'], flush=True); {_SLEEP}"
    _start(supervisor, _program(supervisor.folder, tell, VALUE="50%"))
    assert f"{supervisor.folder} 50%" in _log(supervisor, "a-1")


def test_supervisor_with_a_killed_program_starts_it_again(supervisor: Supervisor) -> None:
    _start(supervisor, _program(supervisor.folder))
    pid = supervisor.states()["a-1"].pid
    os.kill(pid, signal.SIGKILL)
    _wait(lambda: supervisor.states()["a-1"].pid not in {0, pid})


def test_supervisor_with_a_program_that_ends_at_once_is_about_to_try_again(supervisor: Supervisor) -> None:
    _start(supervisor, _program(supervisor.folder, "print('up')"))
    _wait(lambda: supervisor.states()["a-1"].state == State.BACKOFF)
    supervisor.stop(["a-1"])
    assert supervisor.states()["a-1"].state == State.STOPPED


def test_supervisor_given_the_same_programs_again_changes_nothing(supervisor: Supervisor) -> None:
    _start(supervisor, _program(supervisor.folder))
    before = supervisor.states()["a-1"].pid
    supervisor.configure([_program(supervisor.folder)])
    assert supervisor.read_config() == []
    assert supervisor.states()["a-1"].pid == before


def test_supervisor_given_other_programs_adds_removes_and_names_what_changed(supervisor: Supervisor) -> None:
    folder = supervisor.folder
    _start(supervisor, _program(folder), _program(folder, name="a-2"))
    gone = supervisor.states()["a-2"].pid
    tell = f"import os; print(os.environ['VALUE'], flush=True); {_SLEEP}"
    supervisor.configure([_program(folder, tell, VALUE="changed"), _program(folder, name="a-3")])
    assert supervisor.read_config() == ["a-1"]
    assert supervisor.states().keys() == {"a-1", "a-3"}
    assert not _lives(gone)
    supervisor.replace("a-1")
    supervisor.start("a-1")
    _said(supervisor, "a-1", "changed")


def test_supervisor_stopping_a_program_that_does_not_listen_kills_it_after_its_time(supervisor: Supervisor) -> None:
    _start(supervisor, _program(supervisor.folder, _STUBBORN))
    pid = supervisor.states()["a-1"].pid
    supervisor.stop(["a-1"])
    assert not _lives(pid)


def test_supervisor_shut_down_leaves_no_process_and_starts_again(supervisor: Supervisor) -> None:
    _start(supervisor, _program(supervisor.folder))
    pids = [_own_pid(supervisor), supervisor.states()["a-1"].pid]
    supervisor.shutdown()
    assert not supervisor.running
    _wait(lambda: not any(map(_lives, pids)))
    supervisor.start_daemon(os.environ)
    assert supervisor.states()["a-1"].state == State.STOPPED


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can end a program with its supervisord")
def test_supervisor_that_is_killed_takes_its_programs_with_it_and_starts_again(supervisor: Supervisor) -> None:
    _start(supervisor, _program(supervisor.folder))
    pid = supervisor.states()["a-1"].pid
    os.kill(_own_pid(supervisor), signal.SIGKILL)
    _wait(lambda: not _lives(pid))
    assert supervisor.states() == {}
    supervisor.start_daemon(os.environ)
    assert supervisor.running


def test_supervisor_with_another_password_is_not_let_in(supervisor: Supervisor) -> None:
    _start(supervisor, _program(supervisor.folder))
    with pytest.raises(StartRefused, match="does not answer"):
        Supervisor(supervisor.folder, "wrong").read_config()
    assert supervisor.states()["a-1"].state.alive


def test_supervisor_files_with_secrets_are_private(supervisor: Supervisor) -> None:
    _start(supervisor, _program(supervisor.folder, VALUE="secret"))
    holding = [path for path in supervisor.folder.rglob("*") if path.is_file() and "secret" in path.read_text()]
    assert {path.name for path in holding} == {"supervisord.conf", "a-1.sh"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in holding)
