"""Child processes that end with their parent, however the parent ends."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import IO, Any, Final

import structlog

_log = structlog.get_logger(__name__)

_PR_SET_PDEATHSIG: Final = 1
_LINUX: Final = sys.platform == "linux"


@asynccontextmanager
async def child_process(
    *argv: str,
    name: str,
    grace_seconds: float = 5.0,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program for as long as the context is open; it is killed when this process dies, even by SIGKILL.

    It runs in a session of its own: a Ctrl-C in the terminal reaches only the parent, which ends its children in order.
    Enter from the main thread: on Linux the kernel kills the child when the *thread* that started it ends.

    Args:
        argv: the program and its arguments.
        name: for the log.
        grace_seconds: how long it may take to end after SIGTERM, before SIGKILL.
        stdout: as for `subprocess.Popen`; with PIPE, read it to its end, or the process never counts as ended.
        stderr: the same.
        env: its whole environment; None passes on this process's own.

    Yields:
        The process. That it ended by itself is for the caller to notice (`await process.wait()`).

    Raises:
        OSError: the program cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=env,
        start_new_session=True,
        preexec_fn=die_with_parent(os.getpid()) if _LINUX else None,
    )
    try:
        if _LINUX:
            yield process
        else:
            async with _watchdog(process.pid):
                yield process
    finally:
        await _end(process, name, grace_seconds)


async def _end(process: asyncio.subprocess.Process, name: str, grace_seconds: float) -> None:
    """End the process and wait for it; a second cancellation only cuts the grace time short."""
    try:
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(grace_seconds):
                await process.wait()
    except ProcessLookupError:
        pass  # it has ended meanwhile
    except TimeoutError:
        _log.warning("child_killed", child=name, pid=process.pid, grace_seconds=grace_seconds)
    finally:
        # asyncio counts a process as ended only when its pipes are: one that a grandchild holds, or that nobody read,
        # would keep `wait` for ever. The transport's close kills what runs and closes them.
        process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001
        await process.wait()


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """Return what a child does between fork and exec (`preexec_fn`) to be sent a signal when its parent ends.

    It makes two system calls, since after a fork little else is safe. On Linux only. The kernel counts the *thread*
    that starts the child as the parent.

    Args:
        parent: this process's id.
        number: the signal.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    death_signal = int(number)

    def set_death_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call, so the signal will never come
            os._exit(1)

    return set_death_signal


@asynccontextmanager
async def _watchdog(pid: int) -> AsyncIterator[None]:
    """Where the kernel has no death signal: a shell holds a pipe from this process and kills the child at its end."""
    shell = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", 'read -r _; kill -9 "$0"', str(pid), stdin=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:  # the watchdog goes first: afterwards the child's id may be another process's
        with suppress(ProcessLookupError):
            shell.kill()
        await shell.wait()
