"""The page in a real browser, against a real system."""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, WebSocketRoute, expect
from tests.support.browser import open_browser, open_page
from tests.support.model_server import ModelServer

import duologue.api
from duologue.bench.system import EmbeddedSystem, System
from duologue.client.conversation_view import ConversationView

pytestmark = pytest.mark.browser


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """A headless Chromium."""
    async with open_browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """A fresh profile: another guest, nothing stored."""
    context = await browser.new_context()
    yield context
    await context.close()


async def test_page_shows_the_reply_as_it_is_written(
    system: System, model_server: ModelServer, context: BrowserContext
) -> None:
    await model_server.configure(tokens=40, tps=30, echo=True)
    page = await open_page(context, system.url)
    await page.say("How are you?")
    await page.until_writing(characters=20)
    shown = await page.reply_texts.first.text_content() or ""
    text = await page.until_complete()
    assert text.startswith(shown)
    assert len(text) > len(shown)
    assert "How are you?" in text
    await expect(page.said).to_have_text(["How are you?"])
    assert page.errors == []


async def test_page_reloaded_in_the_middle_of_a_reply_shows_it_whole_and_once(
    system: System, model_server: ModelServer, context: BrowserContext
) -> None:
    await model_server.configure(tokens=60, tps=30, echo=True)
    page = await open_page(context, system.url)
    await page.say("Tell me more")
    await page.until_writing(characters=30)
    await page.page.reload()
    await page.until_writing(characters=30)
    text = await page.until_complete()
    assert text.count("Tell me more") == 1
    await expect(page.replies).to_have_count(1)
    await expect(page.said).to_have_text(["Tell me more"])
    await page.page.reload()
    assert await page.until_complete() == text


async def test_page_reconnects_after_a_crash_and_the_reply_is_whole_and_once(
    system: System, model_server: ModelServer, context: BrowserContext
) -> None:
    await model_server.configure(tokens=60, tps=30, echo=True)
    page = await open_page(context, system.url)
    await page.say("Hold on")
    await page.until_writing(characters=30)
    await system.kill()
    await page.until_state("reconnecting")
    await model_server.configure(tps=200)
    await system.start()
    await page.until_state("open")
    text = await page.until_complete()
    assert text.count("Hold on") == 1
    await expect(page.replies).to_have_count(1)
    assert page.errors == []


async def test_message_written_while_the_server_is_away_is_sent_when_it_is_back(
    system: System, context: BrowserContext
) -> None:
    page = await open_page(context, system.url)
    await page.say("first")
    await page.until_complete()
    await system.kill()
    await page.until_state("reconnecting")
    await page.say("second")
    await expect(page.page.locator("[data-testid=message-user][data-phase=sending]")).to_have_count(1)
    # A reload with the message still unsent must not lose it: it is in the tab's storage.
    await system.start()
    await page.page.reload()
    await page.until_complete(index=1)
    await expect(page.said).to_have_text(["first", "second"])


async def test_reply_appears_on_every_tab(system: System, model_server: ModelServer, context: BrowserContext) -> None:
    page = await open_page(context, system.url)
    await page.say("first")
    await page.until_complete()
    other = await open_page(context, page.page.url)
    await other.until_complete()
    await model_server.configure(tokens=30, tps=30)
    await page.say("second")
    await other.until_writing(index=1)
    assert await other.until_complete(index=1) == await page.until_complete(index=1)
    await expect(other.said).to_have_text(["first", "second"])


async def test_buttons_stop_the_reply_and_ask_for_another_also_on_another_tab(
    system: System, model_server: ModelServer, context: BrowserContext
) -> None:
    await model_server.configure(tokens=400, tps=20)
    page = await open_page(context, system.url)
    await expect(page.stop).to_be_hidden()
    await page.say("a long story")
    await page.until_writing(characters=10)
    other = await open_page(context, page.page.url)
    await other.until_writing(characters=10)
    await other.stop.click()
    stopped = await page.until_complete()
    assert stopped == await other.until_complete()
    await expect(page.replies.locator(".note")).to_contain_text("Stopped.")
    await expect(page.stop).to_be_hidden()
    await model_server.until(lambda stats: stats["abandoned"] == 1)
    await other.page.reload()
    assert await other.until_complete() == stopped
    await expect(other.replies.locator(".note")).to_contain_text("Stopped.")
    await model_server.configure(tokens=30, tps=30, echo=True)
    await page.regenerate.click()
    await other.until_writing()
    await expect(page.regenerate).to_be_hidden()
    text = await page.until_complete()
    assert text.startswith("a long story")
    assert text == await other.until_complete()
    await expect(page.regenerate).to_be_enabled()
    await page.page.reload()
    assert await page.until_complete() == text
    await page.say("next")
    await page.until_complete(index=1)
    await expect(page.regenerate).to_have_count(1)  # of the last only
    assert page.errors == other.errors == []


async def test_reply_that_waits_is_stopped_by_the_button(
    embedded: EmbeddedSystem, model_server: ModelServer, context: BrowserContext
) -> None:
    await model_server.configure(ttft_ms=60_000)
    page = await open_page(context, embedded.url)
    await page.say("Hello")
    await page.stop.click()
    assert await page.until_complete() == ""
    await expect(page.replies.locator(".note")).to_contain_text("Stopped.")


async def test_typing_is_shown_on_the_other_tab_until_it_ends(system: System, context: BrowserContext) -> None:
    page = await open_page(context, system.url)
    await page.say("first")
    await page.until_complete()
    other = await open_page(context, page.page.url)
    await other.until_complete()
    await other.input.press_sequentially("sec")
    await expect(page.typing_elsewhere).to_be_visible()
    await expect(other.typing_elsewhere).to_be_hidden()
    await other.input.fill("")
    await expect(page.typing_elsewhere).to_be_hidden()
    await other.input.fill("second")
    await expect(page.typing_elsewhere).to_be_visible()
    await other.input.press("Enter")
    await page.until_complete(index=1)
    await expect(page.typing_elsewhere).to_be_hidden()
    assert page.errors == other.errors == []


async def test_page_reads_the_history_when_the_stream_was_lost_under_an_open_socket(
    embedded: EmbeddedSystem, context: BrowserContext
) -> None:
    """Of the page alone: the server's word for it is put in between."""
    sockets: list[WebSocketRoute] = []

    def between(socket: WebSocketRoute) -> None:
        socket.connect_to_server()
        sockets.append(socket)

    await context.route_web_socket(re.compile("/ws"), between)
    page = await open_page(context, embedded.url)
    await page.say("Hello")
    await page.until_complete()
    async with page.page.expect_response(re.compile(r"/messages\?limit=1$")):  # from where on it reads later
        await page.page.reload()
    await page.until_state("open")
    await page.until_complete()
    async with page.page.expect_request(re.compile(r"/messages\?limit=100&after="), timeout=10_000):
        sockets[-1].send(json.dumps({"type": "connection", "event_id": "lost:0", "recovered": False}))
    assert page.errors == []


async def test_markup_in_messages_and_replies_is_shown_as_it_is(
    system: System, model_server: ModelServer, context: BrowserContext
) -> None:
    await model_server.configure(echo=True)
    hostile = '<img src=x onerror=alert(1)><script>alert(2)</script> **bold** & "quotes"'
    page = await open_page(context, system.url)
    await page.say(hostile)
    assert hostile in await page.until_complete()
    await expect(page.said).to_have_text([hostile])
    await expect(page.page.get_by_test_id("message-list").locator("img, script")).to_have_count(0)
    assert page.errors == []


async def test_conversations_are_kept_apart(system: System, context: BrowserContext) -> None:
    page = await open_page(context, system.url)
    await page.page.locator("[data-testid=character][data-slug=creative]").click()
    await page.say("about poems")
    await page.until_complete()
    await page.page.get_by_test_id("new-conversation").click()
    await expect(page.replies).to_have_count(0)
    await page.say("about numbers")
    await page.until_complete()
    conversations = page.page.get_by_test_id("conversation")
    await expect(conversations.locator(".title")).to_have_text(["about numbers", "about poems"])
    await conversations.nth(1).click()
    await expect(page.said).to_have_text(["about poems"])
    await page.page.reload()
    await expect(page.said).to_have_text(["about poems"])
    await expect(page.page.locator("h1")).to_contain_text("Creative")


async def test_message_too_long_cannot_be_sent(system: System, context: BrowserContext) -> None:
    page = await open_page(context, system.url)
    await page.input.fill("x" * 8001)
    await expect(page.page.get_by_test_id("send")).to_be_disabled()
    await page.input.fill("x" * 8000)
    await expect(page.page.get_by_test_id("send")).to_be_enabled()


async def test_page_works_from_the_keyboard_and_on_a_phone(system: System, context: BrowserContext) -> None:
    page = await open_page(context, system.url)
    await page.page.set_viewport_size({"width": 360, "height": 640})
    await expect(page.input).to_be_focused()  # it is offered first; the page is at rest then
    await page.page.locator("[data-testid=character][aria-checked=true]").focus()
    await page.page.keyboard.press("ArrowRight")
    await expect(page.page.locator("[data-testid=character][data-slug=creative]")).to_have_attribute(
        "aria-checked", "true"
    )
    await page.page.keyboard.press("Tab")
    await expect(page.input).to_be_focused()
    await page.page.keyboard.type("a line")
    await page.page.keyboard.press("Shift+Enter")
    await page.page.keyboard.type("another")
    await page.page.keyboard.press("Enter")
    await page.until_complete()
    await expect(page.said).to_have_text(["a line\nanother"])
    await expect(page.page.get_by_test_id("announcements")).not_to_be_empty()
    width = await page.page.evaluate("document.documentElement.scrollWidth")
    assert width <= 360


_PLAY = """(runs) => runs.map(({ frames, rows }) => {
    const view = new ConversationView();
    for (const frame of frames) view.feed(frame);
    view.merge(rows);
    const shown = [...view.exchanges.values()].map((one) => [
        one.messageId, one.text, one.phase, one.attempt, one.seq, one.finishReason, one.queue?.position ?? null,
    ]);
    return { shown, last: view.lastEventId, wantsResume: view.wantsResume };
})"""


async def test_page_and_python_client_show_the_same_for_any_frames(context: BrowserContext) -> None:
    source = (Path(duologue.api.__file__).parent / "static" / "index.html").read_text("utf-8")
    rules = source[source.index("class Exchange") : source.index("/* ---", source.index("class ConversationView"))]
    runs = [_any_run(random.Random(seed)) for seed in range(400)]
    page = await context.new_page()
    assert await page.evaluate(f"(() => {{ {rules}; return {_PLAY}; }})()", runs) == [_played(run) for run in runs]


def _any_run(draw: random.Random) -> dict[str, Any]:
    """Make frames and history rows of two messages, in no sensible order."""
    frames = [_any_frame(draw, number) for number in range(draw.randint(1, 25))]
    rows = [
        {
            "role": "assistant",
            "reply_to": draw.choice(["m1", "m2"]),
            "state": draw.choice(["complete", "stopped", "failed", "generating"]),
            "attempt": draw.randint(1, 3),
            "content": "row",
        }
        for _ in range(draw.randint(0, 3))
    ]
    return {"frames": frames, "rows": rows}


def _any_frame(draw: random.Random, number: int) -> dict[str, Any]:
    kind = draw.choice(["delta"] * 6 + ["snapshot", "reset", "response", "error", "queued", "connection", "later"])
    frame = {"type": kind, "message_id": draw.choice(["m1", "m2"]), "attempt": draw.randint(1, 3), "position": 2}
    if kind in {"delta", "snapshot"}:
        frame |= {"seq": (seq := draw.randint(1, 5)), "content": draw.choice("abc")}
        frame |= {"from_seq": draw.randint(1, seq)} if draw.random() < 0.3 else {}
    if kind == "response":
        frame |= {"content": f"whole {number}", "event_id": f"e-{number}"}
        frame |= {"finish_reason": draw.choice(["stop", "stopped"])}
    if kind == "error":
        frame |= {"code": draw.choice(["generation_failed", "internal_error"])}
    return frame


def _played(run: dict[str, Any]) -> dict[str, Any]:
    view = ConversationView()
    for frame in run["frames"]:
        view.feed(frame)
    view.merge(run["rows"])
    shown = [
        [one.message_id, one.text, one.phase.value, one.attempt, one.seq, one.finish_reason, one.queue_position]
        for one in view.exchanges.values()
    ]
    return {"shown": shown, "last": view.last_event_id, "wantsResume": view.wants_resume}
