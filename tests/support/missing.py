"""What becomes of a test whose engine this machine does not have: skipped by name, or a failure in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from duologue.cluster.server_process import EngineMissing


@contextmanager
def needs_engine(*, from_apt_get: bool = False) -> Iterator[None]:
    """Skip the test if an engine is missing. With CI=true that is a failure, if it could have been had.

    Args:
        from_apt_get: it comes from the system's packages, which not every machine lets one use. All others come from
            Python packages and Maven, which can be had everywhere.
    """
    try:
        yield
    except EngineMissing as missing:
        if os.environ.get("CI") == "true" and (not from_apt_get or _apt_get_can_be_used()):
            pytest.fail(str(missing))
        pytest.skip(str(missing))


def _apt_get_can_be_used() -> bool:
    if shutil.which("apt-get") is None:
        return False
    if os.geteuid() == 0:
        return True
    sudo = shutil.which("sudo")
    return sudo is not None and subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0
