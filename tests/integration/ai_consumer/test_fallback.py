"""Real providers that fail: what is tried again, what goes on to the next model, and what a breaker holds back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
import structlog
from pydantic import SecretStr
from tests.support.pipeline import Pipeline, until
from tests.support.provider import CUT, OPEN_STREAM, Provider, Request, Step, answer, chunk, event, provider, response

from duologue.bootstrap.models import open_models
from duologue.config import Settings
from duologue.llm.choice import ModelChain

DOWN: list[Step] = [response(503, b"{}", "Retry-After: 0")]
REFUSED_KEY: list[Step] = [response(401, b'{"error":{"code":"invalid_api_key"}}')]


class Site:
    """A first and a second provider that a test sets, and the pipeline's ai-consumer that asks them.

    What each answers is `first` and `second`; requests name the model that is wanted.
    """

    def __init__(self, pipeline: Pipeline, stack: AsyncExitStack) -> None:
        self.pipeline = pipeline
        self.first: Sequence[Step] = answer("from ", "the first", model="model-one")
        self.second: Sequence[Step] = answer("from ", "the second", model="model-two")
        self.providers: list[Provider] = []
        self.models: ModelChain
        self._stack = stack

    async def start(self, fallbacks: Sequence[str], keys: Sequence[str] = (), **changes: Any) -> None:
        """Start with a chain of these: `{second}` in them is the second provider's host."""
        for choose in (self._choose_first, self._choose_second):
            self.providers.append(await self._stack.enter_async_context(provider(choose=choose)))
        hosts = {"second": self.providers[1].base_url.split("/")[2]}
        settings = Settings(
            openai_base_url=self.providers[0].base_url,
            openai_api_key=SecretStr("sk-first"),
            openai_model="one",
            fallback_models=[name.format(**hosts) for name in fallbacks],
            fallback_api_keys=SecretStr(",".join(keys).format(**hosts)),
            **{name: value for name, value in changes.items() if name.startswith("model_breaker_")},
        )
        self.models = await self._stack.enter_async_context(open_models(settings, None))
        await self.pipeline.relay()
        await self.pipeline.consumer(self.models, **changes)

    async def answered(self, content: str = "hello") -> dict[str, Any]:
        """Say something in a conversation of its own and return the outcome."""
        message = await self.pipeline.say(await self.pipeline.conversation(), content)
        return await self.outcome(message.message_id)

    async def break_open(self) -> None:
        """Let two replies fail, which open the first provider's breaker."""
        for _ in range(2):
            assert (await self.answered())["temporary"] is True
        assert self.models.first.breaker.state != "closed"

    async def outcome(self, message_id: str) -> dict[str, Any]:
        async def found() -> dict[str, Any] | None:
            answers = await self.pipeline.answers(0)
            return next((each for each in answers if each["message_id"] == message_id), None)

        outcome: dict[str, Any] = await until(found)
        return outcome

    @property
    def asked(self) -> list[list[str]]:
        """The models that each provider was asked for."""
        return [[request.body["model"] for request in each.requests] for each in self.providers]

    @property
    def keys(self) -> list[set[str | None]]:
        """The keys that each provider was sent."""
        return [{request.headers.get("authorization") for request in each.requests} for each in self.providers]

    def _choose_first(self, request: Request) -> Sequence[Step]:
        return self.first

    def _choose_second(self, request: Request) -> Sequence[Step]:
        return self.second


@pytest.fixture
async def site(pipeline: Pipeline) -> AsyncIterator[Site]:
    """Two providers."""
    async with AsyncExitStack() as stack:
        yield Site(pipeline, stack)


async def test_exhausted_model_is_followed_by_the_next_under_the_same_attempt_if_nothing_was_shown(site: Site) -> None:
    site.first = DOWN
    await site.start(["two@http://{second}/v1"], model_max_tries=2)
    async with site.pipeline.listening() as frames:
        outcome = await site.answered()
    assert (outcome["content"], outcome["model"], outcome["attempt"]) == ("from the second", "model-two", 1)
    assert site.asked == [["one", "one"], ["two"]]
    assert not [frame for frame in frames if frame["type"] == "reset"]


async def test_model_that_fails_after_something_was_shown_is_followed_under_the_next_attempt(site: Site) -> None:
    shown = asyncio.Event()
    site.first = [OPEN_STREAM, chunk(event("half an ")), shown, CUT]
    await site.start(["two@http://{second}/v1"], model_max_tries=1)
    async with site.pipeline.listening() as frames:
        message = await site.pipeline.say(await site.pipeline.conversation(), "hello")
        await until(lambda: any(frame["type"] == "delta" for frame in frames))
        shown.set()
        outcome = await site.outcome(message.message_id)
        await until(lambda: any(frame["type"] == "response" for frame in frames))
    assert (outcome["content"], outcome["model"], outcome["attempt"]) == ("from the second", "model-two", 2)
    assert [(frame["attempt"], frame["reason"]) for frame in frames if frame["type"] == "reset"] == [(2, "retry")]
    texts = {1: "", 2: ""}
    for frame in frames:
        if frame["type"] == "delta":
            texts[frame["attempt"]] += frame["content"]
    assert texts == {1: "half an ", 2: "from the second"}


async def test_each_provider_is_sent_its_own_key_and_no_other(site: Site) -> None:
    site.first = REFUSED_KEY
    await site.start(["two@http://{second}/v1"], ["{second}=sk-second"])
    assert (await site.answered())["content"] == "from the second"
    assert site.asked == [["one"], ["two"]], "a refused key is not tried again"
    assert site.keys == [{"Bearer sk-first"}, {"Bearer sk-second"}]


async def test_provider_without_a_key_of_its_own_is_sent_none(site: Site) -> None:
    site.first = REFUSED_KEY
    await site.start(["two@http://{second}/v1"])
    assert (await site.answered())["content"] == "from the second"
    assert site.keys == [{"Bearer sk-first"}, {None}]


async def test_unknown_model_is_followed_by_the_next_of_the_same_provider(site: Site) -> None:
    await site.start(["small"])
    conversation = await site.pipeline.conversation()
    message = site.pipeline.message(conversation, "hello")
    unknown: list[Step] = [response(404, b'{"error":{"code":"model_not_found"}}')]
    answers = iter([unknown, answer("small talk", model="small")])
    site.providers[0]._choose = lambda _: next(answers)
    await site.pipeline.append(message)
    outcome = await site.outcome(message.message_id)
    assert (outcome["content"], outcome["model"]) == ("small talk", "small")
    assert site.asked == [["one", "small"], []]


async def test_request_refused_for_what_it_says_goes_to_no_other_model(site: Site) -> None:
    site.first = [response(400, b'{"error":{"code":"content_policy"}}')]
    await site.start(["two@http://{second}/v1"])
    outcome = await site.answered()
    assert (outcome["code"], outcome["temporary"]) == ("generation_failed", False)
    assert outcome["message"] == "the language model refused the request (HTTP 400, content_policy)"
    assert site.asked == [["one"], []]


async def test_statuses_are_tried_again_or_passed_on_or_told_as_the_table_says(site: Site) -> None:
    """The content names a status; the first request with it is answered so, a second one well.

    So many failures at once would open the breaker, and which of the replies that held back would be a matter of luck.
    """
    await site.start(["two@http://{second}/v1"], user_max_workers=20, max_workers=20, model_breaker_min_tries=100)
    seen: set[str] = set()

    def choose(request: Request) -> Sequence[Step]:
        said = request.body["messages"][-1]["content"]
        if said in seen:
            return answer("again")
        seen.add(said)
        return [response(int(said), b"{}", "Retry-After: 0")]

    site.providers[0]._choose = choose
    again, onwards, told = (408, 409, 429, 500, 502, 503, 504), (401, 402, 403, 404), (400, 413, 422)
    outcomes = await asyncio.gather(*(site.answered(str(status)) for status in (*again, *onwards, *told)))
    contents = [outcome.get("content", outcome.get("temporary")) for outcome in outcomes]
    assert contents == ["again"] * len(again) + ["from the second"] * len(onwards) + [False] * len(told)
    assert {outcome["attempt"] for outcome in outcomes} == {1}


async def test_wait_that_a_provider_asks_for_is_waited_for(site: Site) -> None:
    await site.start(["two@http://{second}/v1"])
    later: list[Step] = [response(429, b"{}", "retry-after-ms: 300")]
    answers = iter([later, answer("later")])
    site.providers[0]._choose = lambda _: next(answers)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert (await site.answered())["content"] == "later"
    assert loop.time() - began >= 0.3


async def test_chain_that_is_exhausted_fails_with_a_reason_and_the_next_message_goes_on(site: Site) -> None:
    site.first, site.second = DOWN, REFUSED_KEY
    await site.start(["two@http://{second}/v1"], model_max_tries=2)
    outcome = await site.answered()
    assert (outcome["code"], outcome["temporary"]) == ("generation_failed", True)
    assert outcome["message"] == "the language model is not available (HTTP 503)"
    site.first = answer("well again")
    assert (await site.answered())["content"] == "well again"


async def test_each_try_that_fails_is_logged_with_its_reason_and_what_follows(site: Site) -> None:
    site.first, site.second = DOWN, REFUSED_KEY
    await site.start(["two@http://{second}/v1"], ["{second}=sk-second"], model_max_tries=2)
    with structlog.testing.capture_logs() as logs:
        outcome = await site.answered()
    lines = [line for line in logs if line["event"] == "model_try_failed"]
    assert {(line["correlation_id"], line["message_id"], line["attempt"]) for line in lines} == {
        (outcome["correlation_id"], outcome["message_id"], 1)
    }
    first, second = (each.base_url.split("/")[2] for each in site.providers)
    names = ("try_number", "provider", "model", "cause", "next", "to_model")
    assert [tuple(line.get(name) for name in names) for line in lines] == [
        (1, first, "one", "http_503", "retry", None),
        (2, first, "one", "http_503", "next_model", "two"),
        (3, second, "two", "http_401", "given_up", None),
    ]
    assert lines[0]["in_seconds"] >= 0
    assert "sk-" not in str(logs)


async def test_breaker_that_opens_spares_a_provider_until_its_probes_are_answered(site: Site) -> None:
    site.first = DOWN
    bounds = {"model_breaker_min_tries": 3, "model_breaker_open_seconds": 0.4}
    await site.start(["two@http://{second}/v1"], (), model_max_tries=3, **bounds)
    breaker = site.models.first.breaker
    assert [(await site.answered())["content"] for _ in range(4)] == ["from the second"] * 4
    tried = len(site.providers[0].requests)
    assert tried < 3 + 4, "the second reply goes on as soon as the breaker opens, the next ones at once"

    site.first = answer("well again")
    await until(lambda: breaker.state == "half_open")
    assert [(await site.answered())["content"] for _ in range(3)] == ["well again"] * 3
    assert breaker.state == "closed"
    assert len(site.providers[0].requests) == tried + 3


async def test_only_model_with_an_open_breaker_is_waited_for_and_answers(site: Site) -> None:
    site.first = DOWN
    await site.start([], model_max_tries=2, model_breaker_min_tries=3, model_breaker_open_seconds=1.0)
    await site.break_open()
    site.first = answer("well again")
    asked = len(site.providers[0].requests)
    outcome = await site.answered()
    assert (outcome["content"], outcome["attempt"]) == ("well again", 1)
    assert len(site.providers[0].requests) == asked + 1


async def test_stop_of_a_reply_that_waits_for_a_breaker_ends_it_without_a_request(site: Site) -> None:
    site.first = DOWN
    await site.start([], model_max_tries=1, model_breaker_min_tries=2, model_breaker_open_seconds=40.0)
    await site.break_open()
    with structlog.testing.capture_logs() as logs:
        message = await site.pipeline.say(await site.pipeline.conversation(), "hello")
        await until(lambda: any(line["event"] == "model_held_back" for line in logs))
    await site.pipeline.append(site.pipeline.stop(message))
    outcome = await site.outcome(message.message_id)
    assert (outcome["finish_reason"], outcome["content"]) == ("stopped", "")
    assert len(site.providers[0].requests) == 2


async def test_stop_of_a_probe_leaves_its_place_to_the_next(site: Site) -> None:
    site.first = DOWN
    await site.start([], model_max_tries=1, model_breaker_min_tries=2, model_breaker_open_seconds=0.1)
    await site.break_open()
    breaker = site.models.first.breaker
    await until(lambda: breaker.state == "half_open")
    site.first = [asyncio.Event()]
    messages = [await site.pipeline.say(await site.pipeline.conversation(), "hello") for _ in range(3)]
    await site.providers[0].asked(2 + 3)
    assert breaker.admit("another") is None
    await site.pipeline.append(*(site.pipeline.stop(message) for message in messages))
    for message in messages:
        assert (await site.outcome(message.message_id))["finish_reason"] == "stopped"
    site.first = answer("well again")
    assert [(await site.answered())["content"] for _ in range(3)] == ["well again"] * 3
    assert breaker.state == "closed"
