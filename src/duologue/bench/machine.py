"""On what a figure was measured: without that it says nothing."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import subprocess
from pathlib import Path

import msgspec


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine that load, system and engines shared. `processor` is empty where the system does not tell it.

    `open_files`: how many files, and so sockets, one process may hold.
    """

    cores: int
    processor: str
    memory_gib: float
    kernel: str
    open_files: int
    python: str


def machine() -> Machine:
    """Return this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Machine(
        cores=os.cpu_count() or 1,
        processor=_processor(),
        memory_gib=round(memory, 1),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )


def commit() -> str:
    """Return the commit of the checkout that this program runs from, `+` behind it if that was changed; else empty."""
    root, git = Path(__file__).parents[3], shutil.which("git")
    if git is None or not (root / ".git").exists():
        return ""
    argv = [git, "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603  # no input of anybody
    return done.stdout.strip()


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text("utf-8"))
    except OSError:
        return platform.processor()
    return found[1].strip() if found else platform.machine()
