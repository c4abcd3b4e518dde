"""What the server needs is named by its own requirements, not only by those of the tests beside it."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Final

ROOT = Path(__file__).parents[2]

_LOAD_EVERY_ROLE: Final = """
import sys
import duologue.bootstrap, duologue.chat.terminal, duologue.store.postgres, sqlalchemy.ext.asyncio
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_packages_that_the_server_loads_are_pinned_for_it() -> None:
    pinned = set(re.findall(r"^([a-z0-9.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    loaded = subprocess.run([sys.executable, "-c", _LOAD_EVERY_ROLE], capture_output=True, text=True, check=True)
    owners = packages_distributions()
    needed = {_canonical(owner) for module in loaded.stdout.split() for owner in owners.get(module, [])}
    needed -= {"duologue", "setuptools"}  # the latter comes with some virtual environments, and loads itself
    assert {"aiohttp", "confluent-kafka", "sqlalchemy"} <= needed
    assert sorted(needed - pinned) == []
