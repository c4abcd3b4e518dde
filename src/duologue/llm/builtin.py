"""The built-in model behind the usual client: in a child process that is kept running, or served elsewhere for many.

Both are `builtin_server`; a child belongs to one process, a served one is shared by all that know its address.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import IO, Any, Final

import aiohttp
import msgspec
import structlog

from duologue.domain.tasks import end_task
from duologue.engines.child import child_process
from duologue.llm import builtin_server
from duologue.llm.builtin_server import MODEL_NAME
from duologue.llm.failures import temporary
from duologue.llm.openai_compatible import ModelTimeouts, OpenAICompatible, open_session
from duologue.llm.port import LanguageModel, ModelEvent, ModelRequest

_log = structlog.get_logger(__name__)

_LOAD_SECONDS: Final = 120.0
_CHECK_SECONDS: Final = 2.0
_FIRST_DELAY_SECONDS: Final = 0.5
_MAX_DELAY_SECONDS: Final = 30.0
_STEADY_SECONDS: Final = 60.0
"""A child that ran this long before it ended is started again as if it were the first."""

_INHERITED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH")
"""The child's environment: what a program needs, none of this one's secrets."""


class BuiltinModel(LanguageModel):
    """The built-in model. Open it with `open_builtin` (a request made while it loads waits) or `reach_builtin`."""

    def __init__(self, session: aiohttp.ClientSession, timeouts: ModelTimeouts) -> None:
        self._session = session
        self._timeouts = timeouts
        self._model: OpenAICompatible | None = None
        self._url = ""
        self._ready = asyncio.Event()

    @property
    def name(self) -> str:
        return MODEL_NAME

    @property
    def provider(self) -> str:
        return "builtin"

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Make one try: see `LanguageModel.stream`. There is one model, whatever the request names."""
        model = await self._loaded()
        async with aclosing(model.stream(msgspec.structs.replace(request, model=None))) as events:
            async for event in events:
                yield event

    async def check(self) -> None:
        """Return if it can be asked now. Raises ModelTemporaryError while it loads or does not answer."""
        if not self._ready.is_set():
            raise temporary("model_loading", "the built-in model is loading")
        try:
            timeout = aiohttp.ClientTimeout(total=_CHECK_SECONDS)
            async with self._session.get(f"{self._url}/health", timeout=timeout) as response:
                status = response.status
        except (aiohttp.ClientError, OSError) as error:
            raise temporary("connection_failed", "the built-in model does not answer") from error
        if status != 200:
            raise temporary(f"http_{status}", "the built-in model is not ready")

    def serve_from(self, url: str, key: str) -> None:
        """Its process listens at `url` and wants `key`."""
        self._url = url
        self._model = OpenAICompatible(
            self._session, base_url=f"{url}/v1", model=MODEL_NAME, api_key=key, timeouts=self._timeouts
        )
        self._ready.set()

    def unload(self) -> None:
        """Its process is gone."""
        self._ready.clear()
        self._model = None

    async def _loaded(self) -> OpenAICompatible:
        try:
            async with asyncio.timeout(self._timeouts.first_token):
                while self._model is None:
                    await self._ready.wait()
        except TimeoutError as error:
            raise temporary("model_loading", "the built-in model is loading") from error
        return self._model


@asynccontextmanager
async def open_builtin(
    *, timeouts: ModelTimeouts | None = None, log_file: Path | None = None
) -> AsyncIterator[BuiltinModel]:
    """Start the built-in model, keep its process running, and end it with the context.

    Args:
        timeouts: for each try.
        log_file: takes the native code's own log, written anew at each start; None drops it.

    Yields:
        The model, at once: it loads meanwhile, in about a second.

    Raises:
        StartRefused: a package that it needs is not installed.
    """
    builtin_server.weights_path()
    limits = timeouts or ModelTimeouts()
    async with _open_session(limits) as session:
        model = BuiltinModel(session, limits)
        keeper = asyncio.create_task(_keep_running(model, log_file), name="builtin-model")
        try:
            yield model
        finally:
            await end_task(keeper)


@asynccontextmanager
async def reach_builtin(
    url: str, *, key: str = "", timeouts: ModelTimeouts | None = None
) -> AsyncIterator[BuiltinModel]:
    """Reach a built-in model that runs elsewhere (`python -m duologue.llm.builtin_server`).

    Args:
        url: where it listens, without a path.
        key: what it was started with in `DUOLOGUE_BUILTIN_KEY`; empty: it asks for none.
        timeouts: for each try.

    Yields:
        The model, at once: whether it answers shows with the first request.
    """
    limits = timeouts or ModelTimeouts()
    async with _open_session(limits) as session:
        model = BuiltinModel(session, limits)
        model.serve_from(url.rstrip("/"), key)
        yield model


def _open_session(limits: ModelTimeouts) -> AbstractAsyncContextManager[aiohttp.ClientSession]:
    # llama.cpp promises to keep connections and closes each after a streamed answer.
    return open_session(limits, keep_alive=False)


async def _keep_running(model: BuiltinModel, log_file: Path | None) -> None:
    """Run the child again whenever it ends, with a growing delay while it keeps ending early."""
    loop = asyncio.get_running_loop()
    delay = _FIRST_DELAY_SECONDS
    while True:
        started = loop.time()
        try:
            ended = await _run_once(model, log_file)
        except Exception as error:  # noqa: BLE001  # the edge of the loop: whatever it was, another start may do
            ended = f"{type(error).__name__}: {error}"
        finally:
            model.unload()
        if loop.time() - started > _STEADY_SECONDS:
            delay = _FIRST_DELAY_SECONDS
        _log.error("builtin_model_ended", reason=ended, restart_seconds=delay)
        await asyncio.sleep(delay)
        delay = min(delay * 2, _MAX_DELAY_SECONDS)


async def _run_once(model: BuiltinModel, log_file: Path | None) -> str:
    """Run the child until it ends by itself; return what is to be said about that."""
    key = secrets.token_urlsafe(32)
    with _opened(log_file) as errors:
        async with child_process(
            sys.executable,
            "-m",
            builtin_server.__name__,
            name="builtin-model",
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=_environment(os.environ, key),
        ) as process:
            assert process.stdout is not None  # noqa: S101  # it is a pipe
            url = await _address(process.stdout)
            if url is not None:
                model.serve_from(url, key)
                _log.info("builtin_model_loaded", model=MODEL_NAME, pid=process.pid)
                await process.stdout.read()  # to its end, which is the child's
                await process.wait()
        return f"exit status {process.returncode}"


async def _address(stdout: asyncio.StreamReader) -> str | None:
    """Return the address that the child prints when it has loaded, None if it does not come to that."""
    try:
        async with asyncio.timeout(_LOAD_SECONDS):
            line = await stdout.readline()
        return str(json.loads(line)["url"])
    except (TimeoutError, ValueError, KeyError, TypeError):
        return None


def _environment(environment: Mapping[str, str], key: str) -> dict[str, str]:
    inherited = {name: environment[name] for name in _INHERITED if name in environment}
    return {**inherited, builtin_server.KEY_VARIABLE: key}


def _opened(log_file: Path | None) -> IO[Any]:
    return (log_file or Path(os.devnull)).open("wb")
