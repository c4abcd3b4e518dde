"""What processes cost, read from /proc: CPU seconds and resident memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class ProcessFigures(NamedTuple):
    """What a process has used so far. `pid` and `started_at` (ticks since the machine's start) are its identity: ids
    are given again.

    `cpu_seconds` is of all its threads, user and system, without its children, in steps of 10 ms. Of
    `resident_bytes`, what it shares with others counts as its own.
    """

    pid: int
    started_at: int
    cpu_seconds: float
    resident_bytes: int


def read_process(pid: int) -> ProcessFigures | None:
    """Return what a process has used so far; None if it has ended."""
    try:
        fields = _stat(pid)
    except OSError:
        return None
    return ProcessFigures(pid, int(fields[19]), _cpu_seconds(fields), int(fields[21]) * _PAGE_BYTES)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used so far, user and system; 0 if it has ended."""
    try:
        return _cpu_seconds(_stat(pid))
    except OSError:
        return 0.0


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def descendants(pid: int) -> list[int]:
    """Return the process ids of a process' children and theirs, as far as its main thread has made them."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return []
    return [found for child in listed for found in (int(child), *descendants(int(child)))]


def program_of(pid: int) -> str:
    """Return the name of the program that a process runs; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _cpu_seconds(fields: list[str]) -> float:
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def _stat(pid: int) -> list[str]:
    """Return what proc_pid_stat(5) describes from its third field on: the program's name before may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
