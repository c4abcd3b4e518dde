"""Headless Chromium, and the page as a test sees it: by the `data-testid` of its parts."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, BrowserContext, Locator, Page, async_playwright, expect
from tests.support.missing import needs_engine

from duologue.cluster.server_process import EngineMissing

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_PATIENCE_MS = 30_000


def chromium() -> str:
    """Return the path of the system's Chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with needs_engine(from_apt_get=True):
        if path is None:
            raise EngineMissing("the browser tests need Chromium: apt-get install chromium")
    return path


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """Run a headless Chromium."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=_ARGUMENTS)
        try:
            yield browser
        finally:
            await browser.close()


class ChatPage:
    """A tab with the page open. `errors` collects what went wrong in it, the content security policy's reports too."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on(
            "console", lambda message: self.errors.append(message.text) if "Content Security" in message.text else None
        )

    @property
    def state(self) -> Locator:
        """The connection's state."""
        return self.page.get_by_test_id("state")

    @property
    def input(self) -> Locator:
        """Where a message is written."""
        return self.page.get_by_test_id("input")

    @property
    def said(self) -> Locator:
        """The texts of the user's messages."""
        return self.page.locator("[data-testid=message-user] .text")

    @property
    def replies(self) -> Locator:
        """The replies."""
        return self.page.get_by_test_id("message-ai")

    @property
    def reply_texts(self) -> Locator:
        """The texts of the replies."""
        return self.page.locator("[data-testid=message-ai] .text")

    @property
    def stop(self) -> Locator:
        """The button that stops the reply."""
        return self.page.get_by_test_id("stop")

    @property
    def regenerate(self) -> Locator:
        """The button that asks for another answer, beside the last reply."""
        return self.page.get_by_test_id("regenerate")

    @property
    def typing_elsewhere(self) -> Locator:
        """What tells that somebody types on another device."""
        return self.page.get_by_test_id("typing-elsewhere")

    async def until_state(self, state: str) -> None:
        """Wait until the connection is in a state."""
        await expect(self.state).to_have_attribute("data-state", state, timeout=_PATIENCE_MS)

    async def say(self, text: str) -> None:
        """Write a message and send it with Enter."""
        await self.input.fill(text)
        await self.input.press("Enter")

    async def until_writing(self, characters: int = 1, index: int = 0) -> None:
        """Wait until a reply is being written and has at least so many characters."""
        await self.page.wait_for_function(
            """([index, characters]) => {
                const reply = document.querySelectorAll("[data-testid=message-ai]")[index];
                const text = reply?.querySelector(".text").textContent;
                return reply?.dataset.phase === "writing" && text.length >= characters;
            }""",
            arg=[index, characters],
            timeout=_PATIENCE_MS,
        )

    async def until_complete(self, index: int = 0) -> str:
        """Wait until a reply is complete; return its text."""
        await expect(self.replies.nth(index)).to_have_attribute("data-phase", "complete", timeout=_PATIENCE_MS)
        return await self.reply_texts.nth(index).text_content() or ""


async def open_page(context: BrowserContext, url: str) -> ChatPage:
    """Open the page in a new tab and wait until it is connected and offers to write."""
    page = ChatPage(await context.new_page())
    await page.page.goto(url)
    await page.until_state("open")
    return page
