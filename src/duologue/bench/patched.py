"""The program, changed at its start: `python -m duologue.bench.patched <command>`. See `process.PATCH`."""

from __future__ import annotations

import importlib
import os
import runpy

from duologue.bench.process import PATCH

if __name__ == "__main__":
    importlib.import_module(os.environ[PATCH])
    runpy.run_module("duologue.cli", run_name="__main__", alter_sys=True)
