"""The commands under `duologue bench`, made from what `options` declares. What one needs is imported when it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

import msgspec
import typer

from duologue.bench.options import SCENARIOS, Asked, Output, Where
from duologue.domain.errors import DuologueError

app = typer.Typer(
    help="Measure what Duologue costs on this machine, load and engines included, and whether all of it was correct.",
    no_args_is_help=True,
)

_EXIT: Final = "Exit code 0 if all was correct, 1 if it was not, 2 if it could not be run."


def _option(name: str, annotation: Any) -> Any:
    """Return a field's declaration as an option."""
    meta = next(each for each in annotation.__metadata__ if isinstance(each, msgspec.Meta))
    least = meta.ge if meta.ge is not None else meta.gt
    return Annotated[
        annotation.__origin__,
        typer.Option("--" + name.replace("_", "-"), help=meta.description, min=least, max=meta.le),
    ]


@cache  # the system's options are those of every command, and every start of the program makes them
def _fields(struct: type[msgspec.Struct]) -> list[inspect.Parameter]:
    hints = get_type_hints(struct, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=_option(field.name, hints[field.name]),
        )
        for field in msgspec.structs.fields(struct)
    ]


def _command(name: str, options: type[Asked]) -> Callable[..., None]:
    """Return the function of a scenario's command, with an argument for each of its options."""

    def run(**given: Any) -> None:
        chosen = [_chosen(struct, given) for struct in (options, Where, Output)]
        _run(name, *chosen)

    parameters = [parameter for struct in (options, Where, Output) for parameter in _fields(struct)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = f"{options.__doc__}\n\n{_EXIT}"
    return run


def _chosen(struct: type[msgspec.Struct], given: dict[str, Any]) -> Any:
    """Return a struct of the options given. Raises typer.BadParameter: one is out of its bounds."""
    try:
        return msgspec.convert({name: given[name] for name in struct.__struct_fields__}, struct)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(str(error)) from error


def _run(name: str, asked: Asked, where: Where, output: Output) -> None:
    from duologue.bench.command import bench

    try:
        report = bench(name, asked, where, output)
    except DuologueError as error:
        _refuse(error)
    raise typer.Exit(0 if report.is_clean else 1)


def _refuse(error: DuologueError) -> None:
    typer.secho(f"duologue: {error}", err=True, fg="red")
    raise typer.Exit(2) from error


for _name, _options in SCENARIOS.items():
    app.command(name=_name)(_command(_name, _options))


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="A report, as `--report` or `--json` writes it.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="Another one.")],
    anyway: Annotated[bool, typer.Option("--anyway", help="Also if they were asked for different things.")] = False,
) -> None:
    """Two reports side by side: what changed, and whether that is more than runs differ by themselves.

    Exit code 2 if they cannot be compared.
    """
    from rich.console import Console

    from duologue.bench.report.compare import compared, print_comparison
    from duologue.bench.report.model import read_report

    try:
        print_comparison(compared(read_report(before), read_report(after), anyway=anyway), Console())
    except DuologueError as error:
        _refuse(error)
