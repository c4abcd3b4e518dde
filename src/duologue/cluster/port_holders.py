"""Who listens on a port: for the message that it is taken. On Linux, from the kernel's tables."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_LISTENING: Final = "0A"


def holder_of(port: int) -> str:
    """Return the program that listens on a TCP port, with its process id and folder, as far as this user may know."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
    for process in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            if any(str(file.readlink()) in sockets for file in (process / "fd").iterdir()):
                name = (process / "comm").read_text().strip()
                return f"{name} (process {process.name}, in {(process / 'cwd').readlink()})"
    return "another program"


def _inodes(port: int) -> list[str]:
    """Return the numbers of the sockets that listen on it."""
    found = []
    for table in ("net/tcp", "net/tcp6"):
        with suppress(OSError):
            for line in (_PROC / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    found.append(fields[9])
    return found
