"""What a chat looks like in a terminal: text flows in, notices stand between, nothing is painted over."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from duologue.chat.text_flow import TextFlow, harmless
from duologue.client.conversation_view import Exchange, Frame

_WIDEST: Final = 100
_CLEAR_LINE: Final = "\r\x1b[K"


def write(text: str) -> None:
    """Write to the terminal at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


class Screen:
    """Writes from top to bottom. A status is a line at the end that the next thing written takes the place of."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False, soft_wrap=False)
        self._flow = self._new_flow()
        self._shown = ""
        self._has_status = False

    def header(self, *, server: str, server_id: str, user: str, character: str, conversation_id: str) -> None:
        """Say where one is, as whom, with whom."""
        self._end_line()
        self._console.print(Text.assemble(("Duologue", "bold"), ("  ·  ", "dim"), (f"{server} ({server_id})", "dim")))
        self._console.print(Text(f"{user} with {character}", style="dim"))
        self._console.print(Text(f"conversation {conversation_id}  ·  /help lists the commands", style="dim"))
        write("\n")

    def notice(self, text: str, *, bad: bool = False) -> None:
        """Write a remark on lines of its own; what was being written goes on behind it."""
        self._end_line()
        self._console.print(self.remark(text, bad=bad))

    def remark(self, text: str, *, bad: bool = False) -> Text:
        """Return a remark, to be written by somebody else."""
        return Text(harmless(text), style="red" if bad else "dim")

    def render(self, *parts: Any) -> str:
        """Return what `parts` look like, as lines for a terminal."""
        with self._console.capture() as capture:
            for part in parts:
                self._console.print(part)
        return capture.get()

    def status(self, text: str) -> None:
        """Show a line that the next thing written takes the place of."""
        self._end_line()
        style, plain = ("\x1b[2m", "\x1b[22m") if self._console.color_system else ("", "")
        write(f"{style}{text[: self._width() - 1]}{plain}")
        self._has_status = True

    def begin_reply(self) -> None:
        """Start to show a reply."""
        self._flow, self._shown = self._new_flow(), ""

    def show_reply(self, text: str) -> None:
        """Show the reply so far: what was shown of it grows, or begins anew below."""
        if text == self._shown:
            return
        if not text.startswith(self._shown):
            self.notice("(the reply begins anew)")
            self.begin_reply()
        self._end_status()
        write(self._flow.feed(text[len(self._shown) :]))
        self._shown = text

    def end_reply(self) -> None:
        """Leave the reply; what follows stands below it."""
        self._end_line()
        write("\n")

    def exchange(self, exchange: Exchange) -> str:
        """Return a whole exchange, as lines for a terminal."""
        said = Text.assemble(("› ", "dim"), (harmless(exchange.content or ""), "dim"))  # noqa: RUF001
        return self.render(said) + self.reply(exchange.text)

    def reply(self, text: str) -> str:
        """Return a whole reply, as lines for a terminal."""
        flow = self._new_flow()
        return flow.feed(text) + flow.finish_line() + "\n"

    def characters(self, characters: Sequence[Frame]) -> None:
        """List characters."""
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for one in characters:
            table.add_row(Text(str(one["slug"]), style="bold"), harmless(str(one.get("description") or one["name"])))
        self._end_line()
        self._console.print(table)

    def _end_line(self) -> None:
        self._end_status()
        write(self._flow.finish_line())

    def _end_status(self) -> None:
        if self._has_status:
            write(_CLEAR_LINE)
            self._has_status = False

    def _new_flow(self) -> TextFlow:
        return TextFlow(min(self._width(), _WIDEST))

    @staticmethod
    def _width() -> int:
        return shutil.get_terminal_size().columns
