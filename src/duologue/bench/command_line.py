"""Commands whose options are the fields of structs, as `fields` declares them, and how they refuse to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import Parameter, Signature
from typing import Annotated, Any

import msgspec
import typer

from duologue.bench.fields import Field, fields
from duologue.domain.errors import DuologueError


def command(run: Callable[..., None], *structs: type[msgspec.Struct]) -> Callable[..., None]:
    """Return the function of a command, as Typer takes it: it calls `run` with one of each struct.

    What is out of a field's bounds, or together cannot be, is refused as Typer refuses a wrong value: with exit code 2.
    """

    def called(**given: Any) -> None:
        run(*(_chosen(struct, given) for struct in structs))

    parameters = [_parameter(field) for struct in structs for field in fields(struct)]
    called.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # where Typer looks for the options
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    called.__doc__ = run.__doc__
    return called


def _parameter(field: Field) -> Parameter:
    meaning = field.meaning.replace("`", "")  # marks of the documentation
    option = typer.Option(field.option, min=field.least, max=field.most, help=meaning)
    kind = field.kind if field.default is not None else field.kind | None
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=Annotated[kind, option])


def _chosen(struct: type[msgspec.Struct], given: dict[str, Any]) -> msgspec.Struct:
    """Return a struct of the options given. Raises typer.BadParameter."""
    try:
        return msgspec.convert({name: given[name] for name in struct.__struct_fields__}, struct)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(str(error).replace("`$.", "`")) from error


@contextmanager
def refusing() -> Iterator[None]:
    """Tell in words why something cannot be run, and exit with 2: 1 says that it was, and was not well."""
    try:
        yield
    except DuologueError as error:
        typer.secho(f"duologue: {error}", err=True, fg="red")
        raise typer.Exit(2) from error
