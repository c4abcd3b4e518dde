"""Commands that are imported when somebody asks for them: what starts a server does not pay for what others take."""

from __future__ import annotations

from collections import UserDict
from importlib import import_module
from typing import Any

from typer import Typer
from typer.main import get_command


class LazyCommands(UserDict[str, Any]):
    """Commands by their names, or, until one is looked up, the module whose Typer `app` it is: one command or a group.

    Names are known without an import.
    """

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        if isinstance(found, str):
            app: Typer = import_module(found).app
            found = self.data[name] = get_command(app)
            found.name = name
        return found
