"""How many files and sockets this process may hold."""

from __future__ import annotations

import contextlib
import resource
from typing import Final

_OPEN_FILES: Final = 65_536


def raise_file_limit() -> None:
    """Let this process hold as many sockets as the system lets it: the soft limit is often 1024, on macOS 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a system that allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
