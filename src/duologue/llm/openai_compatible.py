"""Any provider that speaks OpenAI's chat completions: OpenAI, Gemini, Ollama, vLLM, llama.cpp and many more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec
import structlog

from duologue.domain.errors import StartRefused
from duologue.llm.answer import AnswerReader
from duologue.llm.failures import failure_of_status, temporary
from duologue.llm.port import (
    Chunk,
    KeyRefused,
    LanguageModel,
    ModelEvent,
    ModelRefused,
    ModelRequest,
    ModelTemporaryError,
)

_log = structlog.get_logger(__name__)

OPENAI_URL: Final = "https://api.openai.com/v1"

_IDLE_SECONDS: Final = 4.0
"""Idle connections are kept for less than the 5 s after which uvicorn, vLLM's server among others, closes them."""

_TAIL_SECONDS: Final = 1.0
"""How long an answer that is whole waits for its usage."""

_REUSE_SECONDS: Final = 0.05
"""How long an answer that is done waits for the end of the HTTP body, so that the connection can be used again."""

_MAX_ERROR_BYTES: Final = 64 * 1024
_ERROR_BODY_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class ModelTimeouts:
    """How long one try at a model may take, in seconds."""

    connect: float = 5.0
    first_token: float = 30.0
    silence: float = 20.0
    whole: float = 300.0


class OpenAICompatible(LanguageModel):
    """A model behind HTTP. Open it with `open_openai_compatible`."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        base_url: str,
        model: str,
        api_key: str = "",
        timeouts: ModelTimeouts | None = None,
        proxy: str | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        self._session = session
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._provider = host_of(base_url)
        self._model = model
        self._api_key = api_key
        self._headers = _headers(api_key)
        self._timeouts = timeouts or ModelTimeouts()
        self._proxy = proxy
        self._defaults = defaults or {}
        self._refusal: ModelRefused | None = None

    @property
    def name(self) -> str:
        return self._model

    @property
    def provider(self) -> str:
        return self._provider

    async def check(self) -> None:
        """Return if the model can be asked; that is known from the latest request, none is made for it.

        Raises:
            ModelRefused: the provider refused the key.
        """
        if self._refusal is not None:
            raise self._refusal

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Make one try: see `LanguageModel.stream`. Pieces that arrive together come as one chunk."""
        started = asyncio.get_running_loop().time()
        response = await self._post(request)
        reader = AnswerReader(request.model or self._model)
        watch = _Watch(response.content, self._timeouts, started)
        try:
            while data := await _read(response.content, reader):
                text = reader.feed(data)
                if reader.alive or reader.has_reason:
                    watch.progress(whole=reader.has_reason)
                if text:
                    watch.pause()
                    with _left_unread(response):
                        yield Chunk(text)
                    watch.resume()
            if text := reader.end():
                yield Chunk(text)
            finished = reader.finish()
            await _drain(response.content)
            yield finished
        finally:
            watch.stop()
            response.close()  # at the end of the body this has nothing left to do, before it it ends the request

    async def _post(self, request: ModelRequest) -> aiohttp.ClientResponse:
        """Send the request and return the answer once its head is there and says 2xx."""
        try:
            async with asyncio.timeout(min(self._timeouts.first_token, self._timeouts.whole)):
                response = await self._send(self._body(request))
        except aiohttp.ServerTimeoutError as error:
            raise temporary("timeout_connect", "the language model cannot be reached") from error
        except TimeoutError as error:
            raise _expired("timeout_first_token") from error
        except aiohttp.ClientConnectorError as error:
            raise temporary("connection_failed", "the language model cannot be reached") from error
        except aiohttp.ClientResponseError as error:
            raise temporary("garbage", "the language model sent what cannot be read") from error
        except (aiohttp.ClientError, OSError) as error:
            raise temporary("connection_lost", "the connection to the language model was lost") from error
        if response.status // 100 != 2:
            await self._raise_status(response, request)
        self._refusal = None
        return response

    async def _send(self, body: bytes) -> aiohttp.ClientResponse:
        """Send a request, at once again if the provider closed the connection before it answered.

        A kept connection may be closed just as it is used: that says nothing about the provider, and is no try.
        """
        try:
            return await self._send_once(body)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            return await self._send_once(body)

    async def _send_once(self, body: bytes) -> aiohttp.ClientResponse:
        return await self._session.post(
            self._url, data=body, headers=self._headers, proxy=self._proxy, allow_redirects=False
        )

    def _body(self, request: ModelRequest) -> bytes:
        body: dict[str, Any] = {
            **self._defaults,
            "model": request.model or self._model,
            "messages": request.messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.max_tokens is not None:  # OpenAI's newer models know only the second name, others only the first
            openai = self._url.startswith(OPENAI_URL)
            body["max_completion_tokens" if openai else "max_tokens"] = request.max_tokens
        if request.user is not None:
            body["user"] = request.user
        return msgspec.json.encode(body)

    async def _raise_status(self, response: aiohttp.ClientResponse, request: ModelRequest) -> None:
        try:
            body = await _error_body(response.content)
        finally:
            response.close()
        failure = failure_of_status(response.status, response.headers, body, model=request.model or self._model)
        if isinstance(failure, ModelRefused):
            if isinstance(failure, KeyRefused):
                self._refusal = failure
            _log.warning(
                "model_refused",
                status=response.status,
                detail=self._redacted(body),
                correlation_id=request.correlation_id,
            )
        raise failure

    def _redacted(self, body: bytes) -> str:
        text = body.decode(errors="replace")
        return (text.replace(self._api_key, "***") if self._api_key else text)[:500]


class _Watch:
    """Fails the read of a body that waits too long. One timer an answer, not one a piece."""

    __slots__ = ("_content", "_end", "_handle", "_limit", "_loop", "_paused", "_since", "_timeouts", "_why")

    def __init__(self, content: aiohttp.StreamReader, timeouts: ModelTimeouts, started: float) -> None:
        self._content = content
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._end = started + timeouts.whole
        self._since = started
        self._limit = timeouts.first_token
        self._why = "timeout_first_token"
        self._paused = False
        self._handle: asyncio.TimerHandle | None = None
        self._arm()

    def progress(self, *, whole: bool) -> None:
        """A token came; with `whole`, the text is complete and only its usage may follow."""
        self._since = self._loop.time()
        limit = min(_TAIL_SECONDS, self._timeouts.silence) if whole else self._timeouts.silence
        if limit != self._limit or self._why == "timeout_first_token":
            self._limit, self._why = limit, "timeout_silence"
            self._arm()

    def pause(self) -> None:
        """The reader of the answer is busy: the model's silence is not counted meanwhile."""
        self._paused = True

    def resume(self) -> None:
        self._since = self._loop.time()
        self._paused = False

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self) -> None:
        self.stop()
        since = self._loop.time() if self._paused else self._since
        self._handle = self._loop.call_at(min(since + self._limit, self._end), self._fire)

    def _fire(self) -> None:
        now = self._loop.time()
        if now >= self._end:
            self._content.set_exception(_expired("timeout_whole"))
        elif not self._paused and now >= self._since + self._limit:
            self._content.set_exception(_expired(self._why))
        else:
            self._arm()


def _expired(cause: str) -> ModelTemporaryError:
    messages = {
        "timeout_first_token": "the language model did not begin to answer in time",
        "timeout_silence": "the language model fell silent",
        "timeout_whole": "the language model took too long",
    }
    return temporary(cause, messages[cause])


async def _read(content: aiohttp.StreamReader, reader: AnswerReader) -> bytes:
    """Return the next bytes of the body, empty at its end; a failure after the whole text is an end too."""
    if reader.done:
        return b""
    try:
        return await content.readany()
    except ModelTemporaryError:  # the watch's
        if reader.has_reason:
            return b""
        raise
    except (aiohttp.ClientError, OSError) as error:
        if reader.has_reason:
            return b""
        raise temporary("stream_cut", "the language model broke off its answer") from error


@contextmanager
def _left_unread(response: aiohttp.ClientResponse) -> Iterator[None]:
    """Leave what the model sends in the system's buffer while the caller is busy with what it has.

    Then a caller that takes its time pays for one look at the socket, and not for one at each piece.
    """
    connection = response.connection  # None once the body has been received whole
    transport = connection.transport if connection is not None else None
    if transport is None or transport.is_closing():
        yield
        return
    transport.pause_reading()
    try:
        yield
    finally:
        if not transport.is_closing():
            transport.resume_reading()


async def _drain(content: aiohttp.StreamReader) -> None:
    """Read the body to its end if that is there at once, so that its connection can carry the next request."""
    try:
        async with asyncio.timeout(_REUSE_SECONDS):
            while not content.at_eof():
                await content.readany()
    except (aiohttp.ClientError, OSError, ModelTemporaryError):  # TimeoutError is an OSError
        return


async def _error_body(content: aiohttp.StreamReader) -> bytes:
    body = b""
    try:
        async with asyncio.timeout(_ERROR_BODY_SECONDS):
            while len(body) < _MAX_ERROR_BYTES and (data := await content.readany()):
                body += data
    except (aiohttp.ClientError, OSError):
        return body
    return body


def _headers(api_key: str) -> dict[str, str]:
    headers = {
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        "Accept-Encoding": "identity",  # a compressed stream would be held back until a block is full
    }
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    return headers


@asynccontextmanager
async def open_openai_compatible(
    *, base_url: str, model: str, api_key: str = "", timeouts: ModelTimeouts | None = None
) -> AsyncIterator[OpenAICompatible]:
    """Open a provider's model for as long as the context is.

    Args:
        base_url: up to and with `/v1`; empty means OpenAI's own.
        model: the model to ask for when a request names none.
        api_key: the bearer key; empty for providers that want none.
        timeouts: for each try.

    Raises:
        StartRefused: the address or the key cannot be one.
    """
    url = base_url or OPENAI_URL
    _check_configuration(url, api_key)
    limits = timeouts or ModelTimeouts()
    async with open_session(limits) as session:
        yield OpenAICompatible(
            session, base_url=url, model=model, api_key=api_key, timeouts=limits, proxy=_proxy_for(url)
        )


@asynccontextmanager
async def open_session(timeouts: ModelTimeouts, *, keep_alive: bool = True) -> AsyncIterator[aiohttp.ClientSession]:
    """Open an HTTP session for `OpenAICompatible`: no limit of connections, no time-outs but the connecting's.

    Without `keep_alive` each request has a connection of its own.
    """
    idle: dict[str, Any] = {"keepalive_timeout": _IDLE_SECONDS} if keep_alive else {"force_close": True}
    connector = aiohttp.TCPConnector(limit=0, **idle)
    limits = aiohttp.ClientTimeout(total=None, connect=timeouts.connect)
    async with aiohttp.ClientSession(
        connector=connector, timeout=limits, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        yield session


def host_of(base_url: str) -> str:
    """Return the host of an address, with its port if the address has one, in lower case.

    Raises:
        ValueError: it is not an http:// or https:// address.
    """
    parts = urlsplit(base_url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("it is not an http:// or https:// address")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return host if parts.port is None else f"{host}:{parts.port}"


def may_be_key(api_key: str) -> bool:
    """Tell whether a key has only characters that a header can carry."""
    return api_key.isascii() and api_key.isprintable() and " " not in api_key


def _check_configuration(base_url: str, api_key: str) -> None:
    try:
        host_of(base_url)
    except ValueError:
        raise StartRefused("OPENAI_BASE_URL is not an http:// or https:// address") from None
    if not may_be_key(api_key):
        raise StartRefused("OPENAI_API_KEY has characters that no key has: spaces, line ends or accents")


def _proxy_for(base_url: str) -> str | None:
    """Return the proxy that the environment names for an address, decided once; none for this machine itself."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    if host in {"localhost", "127.0.0.1", "::1"} or proxy_bypass(host):
        return None
    return getproxies().get(parts.scheme)
