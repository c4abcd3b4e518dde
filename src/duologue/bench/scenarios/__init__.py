"""What is measured: one file for each scenario, with `needs` (of model and system) and `run`."""

from __future__ import annotations

import importlib
from typing import Any, Protocol, cast

from duologue.bench.options import Load
from duologue.bench.run import Bench
from duologue.bench.target import Needs


class Scenario(Protocol):
    """A module beside this one."""

    @staticmethod
    def needs(asked: Any) -> Needs:
        """Return what the scenario needs."""
        ...

    @staticmethod
    async def run(bench: Bench, asked: Any) -> None:
        """Measure, and leave steps and figures with `bench`."""
        ...


def scenario(name: str) -> Scenario:
    """Return the scenario of that name, as it is written on the command line."""
    return cast("Scenario", importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))


def needs_of_load(asked: Load) -> Needs:
    """Return what scenarios of messages need: a model that answers as asked, and no limit of replies at once."""
    model = {"tokens": asked.tokens, "tps": asked.tokens_per_second, "ttft_ms": asked.ttft_ms, "stamp": False}
    return Needs(model=model, settings={"MAX_WORKERS": "256"})
