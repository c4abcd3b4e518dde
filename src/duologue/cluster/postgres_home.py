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

    It is in there, or, if this is root and nobody cannot get there, in a folder made for it under /var/lib.

    Raises:
        StartRefused: that cannot be made.
    """
    if os.geteuid() != 0 or _nobody_can_enter(cluster):
        return cluster / "postgres"
    home = _elsewhere(cluster)
    try:
        home.mkdir(mode=0o711, parents=True, exist_ok=True)
        for folder in (home.parent, home):
            folder.chmod(0o711)
    except OSError as error:
        raise StartRefused(f"{home} cannot be made for PostgreSQL: {error.strerror}") from error
    return home / "postgres"


def remove_postgres_home(cluster: Path) -> None:
    """Remove what `postgres_home` has made outside of the cluster's folder."""
    if (home := _elsewhere(cluster)).is_dir() and os.geteuid() == 0:
        shutil.rmtree(home)


def _elsewhere(cluster: Path) -> Path:
    return _ELSEWHERE / hashlib.sha256(bytes(cluster)).hexdigest()[:12]


def _nobody_can_enter(folder: Path) -> bool:
    command = ["/bin/sh", "-c", 'cd "$0"', str(folder)]
    return subprocess.run(command, cwd="/", user=_NOBODY, capture_output=True, check=False).returncode == 0
