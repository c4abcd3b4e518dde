"""The Lua scripts of the user's stream. Those that share a head are sent as head and body in one."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from duologue.engines.redis import Script

_FOLDER: Final = Path(__file__).parent


def _script(*names: str) -> Script:
    return Script("\n".join((_FOLDER / f"{name}.lua").read_text(encoding="utf-8") for name in names))


APPLY: Final = _script("state", "apply")
OPEN_LIVE: Final = _script("state", "open_live")
APPEND_LIVE: Final = _script("state", "append_live")
PUBLISH: Final = _script("state", "publish")
ATTACH: Final = _script("state", "attach")
CURSOR: Final = _script("cursor")
ADMIT: Final = _script("limit", "admit")
ADMIT_COMMAND: Final = _script("limit", "admit_command")
LIMIT_ADDRESS: Final = _script("limit", "limit_address")

ALL: Final = (APPLY, OPEN_LIVE, APPEND_LIVE, PUBLISH, ATTACH, CURSOR, ADMIT, ADMIT_COMMAND, LIMIT_ADDRESS)
