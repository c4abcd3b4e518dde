"""The commands under `duologue dlq`. What they need is imported when one runs, so that others start fast."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from duologue.domain.errors import StartRefused

if TYPE_CHECKING:
    from duologue.dlq.client import DeadLetters, Letter

app = typer.Typer(
    help="Dead letters: messages and records that were given up.", no_args_is_help=True, add_completion=False
)

T = TypeVar("T")

_MOST: Final = 10_000
"""How many letters one command works on; the next command goes on."""


class State(StrEnum):
    """What may be asked for by `--state`."""

    open = "open"
    replaying = "replaying"
    replayed = "replayed"
    dropped = "dropped"
    any = "any"


_Url = Annotated[
    str, typer.Option(envvar="DUOLOGUE_URL", help="Where the server is. Default: HOST and PORT of the settings here.")
]
_Token = Annotated[
    str,
    typer.Option(
        envvar="DUOLOGUE_TOKEN",
        help="An operator's token. Default: one made with JWT_SECRET or the key in DATA_DIR.",
        show_default=False,
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
_Ids = Annotated[list[str] | None, typer.Argument(help="Ids, as `list` shows them.", show_default=False)]
_All = Annotated[bool, typer.Option("--all", help="All open ones that meet the filters.")]
_Topic = Annotated[str, typer.Option(help="Only those of this topic: incoming_messages or responses.")]
_Cause = Annotated[str, typer.Option(help="Only those with this cause, as http_503 or unreadable.")]
_User = Annotated[str, typer.Option(help="Only those about this userid.")]


@app.command(name="list")
def list_letters(
    state: Annotated[State, typer.Option(help="Only those of this state.")] = State.open,
    topic: _Topic = "",
    cause: _Cause = "",
    user: _User = "",
    limit: Annotated[int, typer.Option(min=1, max=_MOST, help="How many at most.")] = 50,
    url: _Url = "",
    token: _Token = "",
    as_json: _Json = False,
) -> None:
    """List dead letters, the newest first."""
    from duologue.dlq.tables import show_list

    which = _filters(state, topic, cause, user)
    letters = _on_server(url, token, lambda dlq: _take(dlq, which, limit + 1))
    if as_json:
        _print_json({"items": letters[:limit], "more": len(letters) > limit})
        return
    show_list(letters[:limit])
    if len(letters) > limit:
        typer.echo(f"There are more: --limit {min(limit * 10, _MOST)} shows them.", err=True)


@app.command()
def show(
    letter_id: Annotated[str, typer.Argument(help="An id, as `list` shows it.")],
    url: _Url = "",
    token: _Token = "",
    as_json: _Json = False,
) -> None:
    """Show one dead letter with what its record holds."""
    from duologue.dlq.tables import show_letter

    letter = _on_server(url, token, lambda dlq: dlq.show(letter_id))
    if as_json:
        _print_json(letter)
    else:
        show_letter(letter)


@app.command()
def replay(
    ids: _Ids = None,
    every: _All = False,
    topic: _Topic = "",
    cause: _Cause = "",
    user: _User = "",
    yes: _Yes = False,
    url: _Url = "",
    token: _Token = "",
    as_json: _Json = False,
) -> None:
    """Replay dead letters: a failed reply is asked for again, other records go back onto their topic."""
    which = _filters(State.open, topic, cause, user)
    _handle("replay", ids or [], which if every else None, yes=yes, url=url, token=token, as_json=as_json)


@app.command()
def drop(
    ids: _Ids = None,
    every: _All = False,
    topic: _Topic = "",
    cause: _Cause = "",
    user: _User = "",
    yes: _Yes = False,
    url: _Url = "",
    token: _Token = "",
    as_json: _Json = False,
) -> None:
    """Drop dead letters: what their records hold is removed for good."""
    which = _filters(State.open, topic, cause, user)
    _handle("drop", ids or [], which if every else None, yes=yes, url=url, token=token, as_json=as_json)


def _filters(state: State, topic: str, cause: str, user: str) -> Mapping[str, str]:
    given = {"state": "" if state is State.any else state.value, "topic": topic, "cause": cause, "user": user}
    return {name: value for name, value in given.items() if value}


def _handle(
    action: str,
    ids: Sequence[str],
    which: Mapping[str, str] | None,
    *,
    yes: bool,
    url: str,
    token: str,
    as_json: bool,
) -> None:
    """Replay or drop letters, one after the other; exit with 1 if one was refused."""
    if bool(ids) == (which is not None):
        raise StartRefused(f"say which dead letters to {action}: their ids, or --all")
    if which is not None:
        found = _on_server(url, token, lambda dlq: _take(dlq, which, _MOST))
        ids = [letter["id"] for letter in reversed(found)]  # oldest first: a conversation is answered in its order
    ids = list(dict.fromkeys(ids))
    if len(ids) > 1 and not yes:
        _ask(f"{action.capitalize()} {len(ids)} dead letters?")
    results = _on_server(url, token, lambda dlq: _each(getattr(dlq, action), ids, as_json=as_json))
    if as_json:
        _print_json({"items": results})
    elif not ids:
        typer.echo("No dead letters.")
    if any("code" in result for result in results):
        raise typer.Exit(1)


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise StartRefused(f"{question} Nobody is here to answer: --yes does it without asking.")
    typer.confirm(question, abort=True, err=True)


async def _take(dlq: DeadLetters, which: Mapping[str, str], limit: int) -> list[Letter]:
    letters: list[Letter] = []
    async for letter in dlq.walk(which):
        letters.append(letter)
        if len(letters) == limit:
            break
    return letters


async def _each(act: Callable[[str], Awaitable[Letter]], ids: Sequence[str], *, as_json: bool) -> list[dict[str, Any]]:
    """Do it with each; what is refused is told and the others go on."""
    from duologue.dlq.client import LetterRefused

    results: list[dict[str, Any]] = []
    for letter_id in ids:
        try:
            letter = await act(letter_id)
        except LetterRefused as refusal:
            results.append({"id": letter_id, "code": refusal.code, "detail": str(refusal)})
            if not as_json:
                typer.secho(f"{letter_id}  {refusal}", err=True, fg="red")
        else:
            results.append({"id": letter_id, "state": letter["state"]})
            if not as_json:
                typer.echo(f"{letter_id}  {letter['state']}")
    return results


def _on_server(url: str, token: str, work: Callable[[DeadLetters], Awaitable[T]]) -> T:
    from duologue.dlq.access import access
    from duologue.dlq.client import open_dead_letters

    async def run() -> T:
        async with open_dead_letters(access(url, token)) as dlq:
            return await work(dlq)

    return asyncio.run(run())


def _print_json(value: Any) -> None:
    try:
        print(json.dumps(value, indent=2))
    except RecursionError:
        raise StartRefused("the record is nested too deep to be printed: read it from the API") from None
