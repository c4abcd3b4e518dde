"""What the embedded mode tells people when it is ready."""

from __future__ import annotations

import time
from pathlib import Path

import structlog

from duologue import __version__
from duologue.config import Settings, local_url
from duologue.engines.redis_address import shared_redis_url
from duologue.llm.choice import Candidate, ModelChain

_log = structlog.get_logger(__name__)


def announce(settings: Settings, port: int, models: ModelChain, data_dir: Path, began: float) -> None:
    """Tell people what runs, with which model, and where to open it.

    Args:
        settings: of the process.
        port: that it listens on.
        models: those that answer.
        data_dir: where its data is.
        began: when the start began, by the monotonic clock.
    """
    url = local_url(settings.host, port)
    provider = "built in" if settings.builtin_model else settings.openai_base_url or "OpenAI"
    redis = "bundled Valkey" if not shared_redis_url(settings) else "Redis"
    log = f"Kafka (log), {redis} (delivery)" if settings.kafka_bootstrap_servers else f"{redis} (log and delivery)"
    store = settings.database_url.partition(":")[0] or "SQLite"
    lines = [
        f"{settings.app_name} {__version__} is ready after {time.monotonic() - began:.1f} s.",
        f"  Open      {url}",
        f"  Model     {models.first.model.name} ({provider}), {settings.workers} replies at once",
        *([f"  Fallback  {', '.join(_named(each) for each in models.fallbacks)}"] if models.fallbacks else []),
        f"  Runs on   {log}, {store} (store); data in {data_dir}",
        f"  Terminal  duologue chat{'' if port == 8080 else f' --url {url}'}",
        "  Ctrl-C finishes what was accepted and stops; a second one stops at once.",
    ]
    print("\n".join(lines), flush=True)  # noqa: T201  # for people, not for the log
    _log.info("ready", url=url, model=models.first.model.name, seconds=round(time.monotonic() - began, 2))


def _named(candidate: Candidate) -> str:
    return f"{candidate.name} ({candidate.provider.name})"
