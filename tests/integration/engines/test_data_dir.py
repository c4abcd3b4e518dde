"""One running Duologue a data folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from duologue.domain.errors import StartRefused
from duologue.engines.data_dir import locked_data_dir

_HOLD = """
import sys, signal
from pathlib import Path
from duologue.engines.data_dir import locked_data_dir
with locked_data_dir(Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


def test_locked_data_dir_new_folder_is_made_for_its_owner_only(tmp_path: Path) -> None:
    with locked_data_dir(tmp_path / "a" / "data") as path:
        assert path == (tmp_path / "a" / "data").resolve()
        assert path.stat().st_mode & 0o777 == 0o700
        assert (path / "lock").read_text() == f"{os.getpid()}\n"


def test_locked_data_dir_second_holder_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    with (
        locked_data_dir(tmp_path),
        pytest.raises(StartRefused, match=rf"{tmp_path} is running \(process {os.getpid()}\)"),
        locked_data_dir(tmp_path),
    ):
        pass
    with locked_data_dir(tmp_path):  # the refused one took nothing from the first, which has left
        pass


def test_locked_data_dir_holder_killed_is_free_at_once(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StartRefused, match=f"process {holder.pid}"), locked_data_dir(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        with locked_data_dir(tmp_path):
            assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_locked_data_dir_unusable_path_is_refused_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartRefused, match="DATA_DIR"), locked_data_dir(tmp_path / "file" / "data"):
        pass
