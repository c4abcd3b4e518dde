"""The folder of the embedded mode's data: one running Duologue at a time."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from duologue.domain.errors import StartRefused

_WAIT_SECONDS: Final = 0.5
"""A predecessor that was killed a moment ago may not have ended quite yet."""


def made_data_dir(path: Path) -> Path:
    """Return the absolute path of a data folder, made if it is missing. What this process makes from now on, there and
    elsewhere, is for its owner alone: the folder may be one that others can read.

    Raises:
        StartRefused: it cannot be made.
    """
    os.umask(0o077)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path.resolve()
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> StartRefused:
    return StartRefused(f"the data folder {path} cannot be used: {error.strerror}; set DATA_DIR")


@contextmanager
def locked_data_dir(path: Path) -> Iterator[Path]:
    """Hold a data folder, made if it is missing, for as long as the context is open.

    The lock is the kernel's: it ends with the process, however that ends.

    Yields:
        The folder's absolute path.

    Raises:
        StartRefused: a running Duologue has it, or it cannot be made or written.
    """
    made_data_dir(path)
    try:
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        _lock(descriptor, path)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield path.resolve()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StartRefused(_taken(descriptor, path)) from None
            time.sleep(0.01)
        else:
            return


def _taken(descriptor: int, path: Path) -> str:
    holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
    process = f" (process {holder})" if holder else ""
    return (
        f"a Duologue with the data folder {path} is running{process}: stop it first, or set DATA_DIR to another folder"
    )
