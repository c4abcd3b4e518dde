"""`duologue dlq` and `duologue token`, against a server that runs."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.support.api import SECRET, Api, external_token
from typer.testing import CliRunner, Result

from duologue.auth.secret import secret_of
from duologue.auth.tokens import TokenVerifier
from duologue.cli import app
from duologue.config import Settings
from duologue.domain.errors import DuologueError, LogUnavailable
from duologue.domain.records import INCOMING_TOPIC, RESPONSES_TOPIC
from duologue.engines.data_dir import made_data_dir
from duologue.listener import bind
from duologue.runner import http_server
from duologue.store.dead_letters import DeadLetter, insert_dead_letters
from duologue.websocket_server.transport import SocketProtocol

GARBAGE = b"\xff\x00 no record \x1b[31m"


@asynccontextmanager
async def _served(api: Api) -> AsyncIterator[str]:
    """Serve the API on a port; yield its address."""
    with bind("127.0.0.1", 0) as listener:
        server = http_server(api.app, Settings(), SocketProtocol)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await server.listening.wait()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


@pytest.fixture
async def url(api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[str]:
    """A server, and an environment in which the command finds it."""
    monkeypatch.chdir(tmp_path)
    with capture_logs():  # else the server's lines stand in the output of the command, which runs in this process
        async with _served(api) as address:
            monkeypatch.setenv("DUOLOGUE_URL", address)
            monkeypatch.setenv("JWT_SECRET", SECRET)
            yield address


async def _run(*arguments: str) -> Result:
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, ["dlq", *arguments]))


async def _failure(*arguments: str) -> str:
    """Run a command that fails; return its words."""
    result = await _run(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, DuologueError), result.output
    return str(result.exception)


async def _json(*arguments: str) -> Any:
    result = await _run(*arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


async def _keep(api: Api, count: int = 1, **fields: Any) -> list[str]:
    """Keep letters of unreadable records, unless told otherwise; return the ids of all there are, oldest first."""
    known: dict[str, Any] = {
        "topic": INCOMING_TOPIC,
        "partition": 0,
        "key": "c-1",
        "value": GARBAGE,
        "size": len(GARBAGE),
        "headers": {"correlation_id": "c-9"},
        "error": "cannot be\x1b[31m read",
        "cause": "unreadable",
        "tries": 1,
        "first_at": api.clock(),
    } | fields
    api.offset += count
    offsets = range(api.offset - count, api.offset)
    letters = [DeadLetter(**known, offset=offset, last_at=api.clock() + offset) for offset in offsets]
    await api.database.write(insert_dead_letters, letters)
    listed = await _json("list", "--state", "any", "--limit", "1000")
    return [item["id"] for item in reversed(listed["items"])]


async def _states(api: Api) -> list[str]:
    listed = await _json("list", "--state", "any", "--limit", "1000")
    return [item["state"] for item in reversed(listed["items"])]


@pytest.mark.usefixtures("url")
async def test_list_in_a_pipe_has_a_line_for_each_open_letter_with_nothing_a_terminal_obeys(api: Api) -> None:
    ids = await _keep(api, 3)
    await _run("drop", ids[0])
    result = await _run("list")
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == [ids[2], ids[1]]
    assert lines[0][1] == "open"
    assert "\x1b" not in result.stdout


@pytest.mark.usefixtures("url")
async def test_list_walks_over_pages_and_says_when_there_are_more(api: Api) -> None:
    await _keep(api, 230)
    assert len((await _json("list", "--limit", "230"))["items"]) == 230
    result = await _run("list", "--limit", "150")
    assert len(result.stdout.splitlines()) == 150
    assert "There are more" in result.stderr


@pytest.mark.usefixtures("url")
async def test_list_with_filters_shows_those_alone(api: Api) -> None:
    await _keep(api)
    await _keep(api, topic=RESPONSES_TOPIC, cause="refused_by_redis")
    assert [item["cause"] for item in (await _json("list", "--topic", "responses"))["items"]] == ["refused_by_redis"]
    assert [item["topic"] for item in (await _json("list", "--cause", "unreadable"))["items"]] == [INCOMING_TOPIC]
    assert (await _json("list", "--user", "nobody"))["items"] == []


@pytest.mark.usefixtures("url")
async def test_show_has_all_that_is_known(api: Api) -> None:
    [letter_id] = await _keep(api)
    letter = await _json("show", letter_id)
    assert (b64decode(letter["value"]), letter["headers"]) == (GARBAGE, {"correlation_id": "c-9"})
    text = (await _run("show", letter_id)).stdout
    assert "unreadable" in text
    assert "ff 00 20 6e 6f" in text
    assert "\x1b" not in text


@pytest.mark.usefixtures("url")
async def test_show_of_json_shows_it_indented(api: Api) -> None:
    [letter_id] = await _keep(api, value=b'{"v":99,"said":"\\u001b[31m"}', size=27)
    text = (await _run("show", letter_id)).stdout
    assert '  "v": 99' in text
    assert "\x1b" not in text


@pytest.mark.usefixtures("url")
async def test_replay_of_one_does_not_ask(api: Api) -> None:
    ids = await _keep(api, 2)
    result = await _run("replay", ids[0])
    assert (result.exit_code, result.stdout) == (0, f"{ids[0]}  replayed\n")
    assert await _states(api) == ["replayed", "open"]
    assert [value for _, value, _ in await api.appended(INCOMING_TOPIC)] == [GARBAGE]


@pytest.mark.usefixtures("url")
async def test_replay_of_more_than_one_asks_and_without_anybody_to_answer_does_nothing(api: Api) -> None:
    ids = await _keep(api, 2)
    assert "--yes" in await _failure("replay", *ids)
    assert "--yes" in await _failure("drop", "--all")
    assert await _states(api) == ["open", "open"]


@pytest.mark.usefixtures("url")
async def test_replay_of_all_takes_those_that_meet_the_filters_the_oldest_first(api: Api) -> None:
    await _keep(api, 2)
    ids = await _keep(api, 2, topic=RESPONSES_TOPIC)
    done = await _json("replay", "--all", "--topic", "responses", "--yes")
    assert done["items"] == [{"id": letter_id, "state": "replayed"} for letter_id in ids[2:]]
    assert await _states(api) == ["open", "open", "replayed", "replayed"]
    assert (await _run("replay", "--all", "--topic", "responses")).stdout == "No dead letters.\n"


@pytest.mark.usefixtures("url")
async def test_replay_that_is_refused_is_told_and_the_others_go_on(api: Api) -> None:
    ids = await _keep(api, 3)
    await _run("drop", ids[1])
    result = await _run("replay", *ids, "--yes")
    assert result.exit_code == 1
    assert "was dropped by" in result.stderr
    assert await _states(api) == ["replayed", "dropped", "replayed"]
    result = await _run("replay", "nothing", "not an id", "--yes", "--json")
    assert result.exit_code == 1
    assert [item["code"] for item in json.loads(result.stdout)["items"]] == ["dead_letter_not_found", "invalid_request"]


@pytest.mark.usefixtures("url")
async def test_drop_of_all_drops_what_is_open(api: Api) -> None:
    ids = await _keep(api, 3)
    await _run("replay", ids[0])
    assert (await _run("drop", "--all", "-y")).exit_code == 0
    assert await _states(api) == ["replayed", "dropped", "dropped"]


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize("arguments", [["replay"], ["drop"], ["replay", "an-id", "--all"]])
async def test_command_that_does_not_say_which_letters_is_refused(arguments: list[str]) -> None:
    assert "their ids, or --all" in await _failure(*arguments)


async def test_token_given_is_used_and_one_that_is_no_operators_is_refused(
    api: Api, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JWT_SECRET")
    made = api.issuer.issue_operator("sue", lifetime_seconds=60)
    assert (await _json("list", "--token", made))["items"] == []
    words = await _failure("list", "--token", external_token("ada", api.clock))
    assert words.startswith(f"{url} does not take this token: This needs an operator's token")


@pytest.mark.usefixtures("url")
async def test_command_without_a_key_says_where_it_looked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JWT_SECRET")
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "elsewhere"))
    words = await _failure("list")
    assert "JWT_SECRET is not set" in words
    assert str(tmp_path / "elsewhere") in words
    assert not (tmp_path / "elsewhere").exists()


async def test_server_that_cannot_be_reached_is_told_in_words(api: Api, url: str) -> None:
    assert "cannot be reached: Connection refused" in await _failure("list", "--url", "127.0.0.1:1")
    assert "is not the address of a server" in await _failure("list", "--url", "ftp://x")
    api.producer.failure = TimeoutError()
    [letter_id] = await _keep(api)
    assert f"{url} refuses: Something went wrong" in await _failure("replay", letter_id)


async def test_server_whose_log_is_away_says_that_it_cannot_answer(api: Api, url: str) -> None:
    [letter_id] = await _keep(api)
    api.producer.failure = LogUnavailable("away")
    assert f"{url} cannot answer now" in await _failure("replay", letter_id)
    assert await _states(api) == ["open"]


async def test_token_is_made_with_the_key_of_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = secret_of(made_data_dir(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JWT_SECRET", raising=False)
    result = CliRunner().invoke(app, ["token", "--operator", "--name", "sue", "--hours", "2"])
    identity = TokenVerifier(secret).verify(result.stdout.strip())
    assert (identity.user.user_id, identity.operator, identity.uid) == ("sue", True, None)


@pytest.mark.parametrize("arguments", [["token"], ["token", "--operator", "--name", "not a name"]])
def test_token_that_cannot_be_is_refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JWT_SECRET", SECRET)
    assert isinstance(CliRunner().invoke(app, arguments).exception, DuologueError)
