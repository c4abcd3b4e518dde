"""Where PostgreSQL's data is when this is root: it then runs as nobody, who may not be able to enter the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from duologue.domain.errors import StartRefused

_NOBODY: Final = 65534
_ELSEWHERE: Final = Path("/var/lib/duologue")


def postgres_home(cluster: Path) -> Path:
    """Return the folder for the PostgreSQL of the cluster in `cluster`, an absolute path that exists.

    It is in there, or, if this is root and nobody cannot get there, under /var/lib.
    """
    if os.geteuid() != 0 or _nobody_can_enter(cluster):
        return cluster / "postgres"
    return _elsewhere(cluster) / "postgres"


def make_postgres_home(home: Path) -> None:
    """Make the folders that lead to `home`, if it is under /var/lib.

    Raises:
        StartRefused: they cannot be made.
    """
    if not home.is_relative_to(_ELSEWHERE):
        return
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        for folder in (_ELSEWHERE, home.parent):
            folder.chmod(0o711)
    except OSError as error:
        raise StartRefused(f"{home.parent} cannot be made for PostgreSQL: {error.strerror}") from error


def remove_postgres_home(cluster: Path) -> None:
    """Remove what `postgres_home` has made outside of the cluster's folder."""
    if (home := _elsewhere(cluster)).is_dir() and os.geteuid() == 0:
        shutil.rmtree(home)


def _elsewhere(cluster: Path) -> Path:
    return _ELSEWHERE / hashlib.sha256(bytes(cluster)).hexdigest()[:12]


def _nobody_can_enter(folder: Path) -> bool:
    command = ["/bin/sh", "-c", 'cd "$0"', str(folder)]
    return subprocess.run(command, cwd="/", user=_NOBODY, capture_output=True, check=False).returncode == 0
