"""`duologue chat` as people run it: in a pipe, and at a terminal."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support.model_server import ModelServer
from tests.support.users import unique

from duologue.auth.tokens import TokenIssuer
from duologue.bench.process import free_port
from duologue.bench.system import System
from duologue.client.tokens import GuestToken, TokenFile
from duologue.domain.ids import UserKey

_DUOLOGUE = (sys.executable, "-m", "duologue.cli", "chat", "--url")
_TOKENS = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([^\r])", re.DOTALL)


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment with a settings folder of its own, and without the size of the terminal that the tests run in."""
    ours = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return {**ours, "XDG_CONFIG_HOME": str(tmp_path), "TERM": "xterm-256color"}


async def pipe(url: str, said: bytes, home: dict[str, str], *options: str) -> tuple[int | None, str, str]:
    """Send `said` through `duologue chat`. Returns exit code, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(*_DUOLOGUE, url, *options, env=home, stdin=-1, stdout=-1, stderr=-1)
    out, err = await asyncio.wait_for(process.communicate(said), 60)
    return process.returncode, out.decode(), err.decode()


class Terminal:
    """A terminal in which the chat runs."""

    def __init__(self, process: asyncio.subprocess.Process, descriptor: int) -> None:
        self.process = process
        self.shown = ""
        self._descriptor = descriptor
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, self._readable)

    @property
    def text(self) -> str:
        """Everything that was written so far, without what was taken back to be wrapped."""
        written: list[str] = []
        for number, kind, character in _TOKENS.findall(self.shown):
            written.append(character)
            if kind == "D":
                del written[-int(number) - 1 :]
        return "".join(written)

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._descriptor, keys.encode())

    async def until(self, condition: Callable[[str], bool], seconds: float = 30.0) -> str:
        """Wait until what was written satisfies a condition; return it."""
        try:
            async with asyncio.timeout(seconds):
                while not condition(self.text):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"it shows:\n{self.text}") from None
        return self.text

    async def until_prompt(self, number: int = 1) -> str:
        """Wait for the prompt that waits for the `number`-th line."""
        return await self.until(lambda _: len(re.findall(r"\x1b\[J› \x20", self.shown)) >= number)  # noqa: RUF001

    async def ended(self) -> int:
        """Wait for the end and return the exit code."""
        return await asyncio.wait_for(self.process.wait(), 30)

    def close(self) -> None:
        """Take the terminal away."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _readable(self) -> None:
        try:
            self.shown += os.read(self._descriptor, 65536).decode(errors="replace")
        except OSError:
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self._changed.set()


@asynccontextmanager
async def terminal(url: str, home: dict[str, str], *options: str) -> AsyncIterator[Terminal]:
    """Run the chat in a terminal of 24 rows and 60 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    before = termios.tcgetattr(theirs)
    process = await asyncio.create_subprocess_exec(
        *_DUOLOGUE, url, *options, env=home, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    shown = Terminal(process, ours)
    try:
        yield shown
        assert process.returncode is not None
        assert termios.tcgetattr(theirs)[:4] == before[:4], "the terminal was not set back"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        shown.close()
        os.close(theirs)


async def test_pipe_prints_the_answer_and_nothing_else(
    system: System, model_server: ModelServer, home: dict[str, str]
) -> None:
    await model_server.configure(echo=True)
    code, out, err = await pipe(system.url, "grüß\nGott\n".encode(), home)
    assert (code, err) == (0, "")
    assert "grüß\nGott" in out
    assert out.endswith("\n")
    assert "\x1b" not in out


async def test_pipe_stays_the_same_guest(system: System, home: dict[str, str]) -> None:
    for _ in range(2):
        code, out, err = await pipe(system.url, b"hi", home)
        assert (code, err) == (0, "")
        assert out


async def test_pipe_with_a_token_of_an_earlier_server_gets_a_new_one(
    system: System, home: dict[str, str], tmp_path: Path
) -> None:
    user = unique("ann")
    kept = TokenIssuer("the key of the server that was here before").issue(
        UserKey("default", user), uid="0193", kind="guest", lifetime_seconds=3600
    )
    TokenFile(tmp_path / "duologue" / "tokens.json").save(system.url, user, GuestToken(kept, time.time() + 3600))
    code, out, err = await pipe(system.url, b"Hello", home, "--user", user)
    assert (code, err) == (0, "")
    assert out.strip()


async def test_pipe_tells_errors_in_words_and_exits_with_1(system: System, home: dict[str, str]) -> None:
    await _refuses(system, home, b"", words="nothing to send")
    await _refuses(system, home, b"x" * 9000, words="refused")
    await _refuses(system, home, b"hi", "--character", "nobody", words="character")
    await _refuses(system, home, b"hi", "--conversation", "nothing", words="conversation")
    await _refuses(system, home, b"hi", "--user", "not a name", words="cannot be a user")


async def _refuses(system: System, home: dict[str, str], said: bytes, *options: str, words: str) -> None:
    code, out, err = await pipe(system.url, said, home, *options)
    assert (code, out) == (1, "")
    assert words in err
    assert "Traceback" not in err
    assert err.count("\n") == 1


async def test_name_of_another_guest_is_told_in_words(system: System, home: dict[str, str], tmp_path: Path) -> None:
    ada = unique("ada")
    await pipe(system.url, b"hi", home, "--user", ada)
    other = {**home, "XDG_CONFIG_HOME": str(tmp_path / "other")}
    code, _, err = await pipe(system.url, b"hi", other, "--user", ada)
    assert code == 1
    assert f"{ada} belongs to somebody else" in err


async def test_server_that_is_not_there_is_told_in_one_sentence(home: dict[str, str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    code, out, err = await pipe(url, b"hi", home)
    assert (code, out) == (1, "")
    assert url in err
    assert "make run" in err
    assert "Traceback" not in err


async def test_terminal_streams_wraps_and_ends_with_ctrl_d(
    system: System, model_server: ModelServer, home: dict[str, str]
) -> None:
    await model_server.configure(tokens=30, tps=60, echo=True)
    async with terminal(system.url, home) as chat:
        header = await chat.until_prompt()
        assert system.url in header
        assert "Assistant" in header
        chat.press("How are yoX\x7fu?\r")
        text = await chat.until_prompt(2)
        assert "How are you?" in text
        chat.press("\x04")
        assert await chat.ended() == 0
    assert all(len(line) <= 60 for line in text.splitlines() if "›" not in line)  # noqa: RUF001


async def test_terminal_shows_the_history_at_the_start(system: System, home: dict[str, str]) -> None:
    await pipe(system.url, b"remember me", home)
    async with terminal(system.url, home) as chat:
        assert "remember me" in await chat.until_prompt()
        chat.press("/quit\r")
        assert await chat.ended() == 0


async def test_terminal_commands_answer(system: System, home: dict[str, str]) -> None:
    async with terminal(system.url, home) as chat:
        await chat.until_prompt()
        chat.press("/help\r")
        await chat.until(lambda text: "another conversation" in text)
        chat.press("/characters\r")
        await chat.until(lambda text: "analytical" in text)
        chat.press("/nonsense\r")
        await chat.until(lambda text: "no command /nonsense" in text)
        chat.press("/character creative\r")
        await chat.until(lambda text: "with Creative" in text)
        chat.press("/new\r")
        await chat.until(lambda text: text.count("with Creative") == 2)
        chat.press("/quit\r")
        assert await chat.ended() == 0


async def test_ctrl_c_during_a_reply_returns_to_the_prompt_and_at_the_prompt_ends(
    system: System, model_server: ModelServer, home: dict[str, str]
) -> None:
    await model_server.configure(tokens=80, tps=20, echo=True)
    async with terminal(system.url, home) as chat:
        await chat.until_prompt()
        chat.press("a long story\r")
        await chat.until(lambda text: text.count("a long story") >= 3)
        chat.process.send_signal(signal.SIGINT)
        await chat.until(lambda text: "(stopped)" in text)
        chat.process.send_signal(signal.SIGINT)
        assert await chat.ended() == 0
        assert "Traceback" not in chat.text


async def test_esc_stops_a_reply_and_regenerate_writes_another(
    system: System, model_server: ModelServer, home: dict[str, str]
) -> None:
    await model_server.configure(tokens=400, tps=20)
    async with terminal(system.url, home) as chat:
        await chat.until_prompt()
        chat.press("a long story\r")
        await model_server.until(lambda stats: stats["pieces"] > 5)
        chat.press("\x1b")
        await chat.until(lambda text: "(stopped)" in text)
        await chat.until_prompt(2)
        await model_server.until(lambda stats: stats["abandoned"] == 1)
        await model_server.configure(tokens=8, tps=0, echo=True)
        chat.press("/regenerate\r")
        await chat.until(lambda text: "a long story" in text.partition("/regenerate")[2])
        await chat.until_prompt(3)
        chat.press("\x04")
        assert await chat.ended() == 0


async def test_terminal_reconnects_by_itself_and_says_so(
    system: System, model_server: ModelServer, home: dict[str, str]
) -> None:
    await model_server.configure(tokens=60, tps=30, echo=True)
    async with terminal(system.url, home) as chat:
        await chat.until_prompt()
        chat.press("go on\r")
        await chat.until(lambda text: len(text.rpartition("go on")[2]) > 20)
        await system.kill()
        await chat.until(lambda text: "connection was lost" in text)
        await model_server.configure(tps=200)
        await system.start()
        await chat.until(lambda text: "(connected again)" in text)
        await chat.until_prompt(2)
        assert chat.text.count("connecting again)") == 1
        chat.press("\x04")
        assert await chat.ended() == 0
        assert "Traceback" not in chat.text
