"""The models that are asked: which of them, in which order, and the breaker of each provider."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from duologue.config import Settings
from duologue.llm.breaker import BreakerPolicy, CircuitBreaker
from duologue.llm.builtin import open_builtin, reach_builtin
from duologue.llm.choice import Candidate, ModelChain, Provider
from duologue.llm.fallbacks import Address, read_fallbacks
from duologue.llm.openai_compatible import OPENAI_URL, ModelTimeouts, open_openai_compatible
from duologue.llm.port import LanguageModel


@asynccontextmanager
async def open_models(settings: Settings, builtin_log: Path | None) -> AsyncIterator[ModelChain]:
    """Open the model that is asked first and those that stand in for it, each provider once."""
    first = None
    if not settings.builtin_model:
        base_url = (settings.openai_base_url or OPENAI_URL).rstrip("/")
        first = Address(base_url, settings.openai_api_key.get_secret_value())
    fallbacks = read_fallbacks(settings.fallback_models, settings.fallback_api_keys.get_secret_value(), first)
    own_models = {each.address: each.model for each in reversed(fallbacks)} | {first: settings.openai_model}
    async with AsyncExitStack() as stack:
        opened: dict[Address | None, Provider] = {}
        for address in dict.fromkeys([first, *(each.address for each in fallbacks)]):
            opening = _open_model(settings, address, own_models[address] or "", builtin_log)
            model = await stack.enter_async_context(opening)
            opened[address] = Provider(model, _breaker(settings, model, opened.values()))
        yield ModelChain(opened[first], [Candidate(opened[each.address], each.model) for each in fallbacks])


def _breaker(settings: Settings, model: LanguageModel, others: Iterable[Provider]) -> CircuitBreaker:
    """Make the breaker of a provider. Its name is the host's, numbered if one host has several keys."""
    same = sum(other.model.provider == model.provider for other in others)
    policy = BreakerPolicy(
        failure_share=settings.model_breaker_failure_share,
        min_tries=settings.model_breaker_min_tries,
        open_seconds=settings.model_breaker_open_seconds,
    )
    return CircuitBreaker(f"{model.provider}#{same + 1}" if same else model.provider, policy)


@asynccontextmanager
async def _open_model(
    settings: Settings, address: Address | None, name: str, builtin_log: Path | None
) -> AsyncIterator[LanguageModel]:
    timeouts = ModelTimeouts(
        connect=settings.model_connect_timeout_seconds,
        first_token=settings.model_first_token_timeout_seconds,
        silence=settings.model_silence_timeout_seconds,
        whole=settings.model_total_timeout_seconds,
    )
    if address is None and settings.builtin_model_url:
        key = settings.builtin_model_key.get_secret_value()
        async with reach_builtin(settings.builtin_model_url, key=key, timeouts=timeouts) as shared:
            yield shared
        return
    if address is None:
        async with open_builtin(timeouts=timeouts, log_file=builtin_log) as builtin:
            yield builtin
        return
    async with open_openai_compatible(
        base_url=address.base_url, model=name, api_key=address.api_key, timeouts=timeouts
    ) as provider:
        yield provider
