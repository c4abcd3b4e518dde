"""A user's stream takes every record, had or not. It is imported before whoever uses the script."""

from __future__ import annotations

from duologue.delivery import scripts
from duologue.engines.redis import Script

_KNOWN = "== 0 then return false end"
assert _KNOWN in scripts.APPLY.source

_OFF = Script(scripts.APPLY.source.replace(_KNOWN, "== 0 then return true end"))
scripts.ALL = tuple(_OFF if script is scripts.APPLY else script for script in scripts.ALL)  # type: ignore[assignment, misc]
scripts.APPLY = _OFF  # type: ignore[misc]
