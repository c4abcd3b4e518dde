"""The fallback chain as it is configured, and what is refused about it without telling a key."""

from __future__ import annotations

import pytest

from duologue.domain.errors import StartRefused
from duologue.llm.fallbacks import Address, Fallback, read_fallbacks

FIRST = Address("https://api.example.com/v1", "sk-first")


def test_entries_are_read_with_the_address_and_the_key_that_are_theirs() -> None:
    names = ["small", "llama3:8b@http://127.0.0.1:11434/v1/", "big@https://Other.example.com/v1", "builtin"]
    keys = " other.example.com = sk-other=, 127.0.0.1:11434=k "
    assert read_fallbacks(names, keys, FIRST) == [
        Fallback("small", FIRST),
        Fallback("llama3:8b", Address("http://127.0.0.1:11434/v1", "k")),
        Fallback("big", Address("https://Other.example.com/v1", "sk-other=")),
        Fallback(None, None),
    ]


def test_model_with_an_at_sign_in_its_name_keeps_it() -> None:
    assert read_fallbacks(["@cf/meta/llama", "claude@2024@https://h/v1"], "", FIRST) == [
        Fallback("@cf/meta/llama", FIRST),
        Fallback("claude@2024", Address("https://h/v1", "")),
    ]


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example.com/v1",
        "https://api.example.com:8443/v1",
        "http://api.example.com/v1",
        "https://api.example.com/v2",
        "https://api.example.com.evil.example/v1",
    ],
)
def test_key_of_the_first_provider_is_not_used_at_any_other_address(url: str) -> None:
    [fallback] = read_fallbacks([f"m@{url}"], "", FIRST)
    assert fallback.address == Address(url, "")


def test_address_of_the_first_provider_written_out_is_the_first_provider() -> None:
    assert read_fallbacks([f"m@{FIRST.base_url}/"], "", FIRST) == [Fallback("m", FIRST)]


def test_address_of_the_first_provider_with_a_key_of_its_own_is_another_provider() -> None:
    [fallback] = read_fallbacks([f"m@{FIRST.base_url}"], "api.example.com=sk-second", FIRST)
    assert fallback.address == Address(FIRST.base_url, "sk-second")


def test_built_in_model_first_has_models_elsewhere_behind_it() -> None:
    assert read_fallbacks(["m@http://h/v1"], "", None) == [Fallback("m", Address("http://h/v1", ""))]


@pytest.mark.parametrize(
    ("names", "first", "words"),
    [
        (["small"], None, "'small' is to be asked for at the first provider, but that is the built-in model"),
        (["builtin"], None, "the built-in model is asked first already"),
        (["a", "b", "c", "d", "e"], FIRST, "has 5 models: at most 4"),
        (["two words"], FIRST, "'two words' is neither model nor model@https://host/v1"),
        (["m@https://"], FIRST, "the address of 'm' cannot be one"),
        (["m@https://host:port/v1"], FIRST, "the address of 'm' cannot be one"),
    ],
)
def test_chain_that_cannot_be_is_refused_in_words(names: list[str], first: Address | None, words: str) -> None:
    with pytest.raises(StartRefused, match=r"^FALLBACK_MODELS") as refused:
        read_fallbacks(names, "", first)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("sk-secret", "entry 1 is not host=key"),
        ("h=sk-secret,=sk-secret", "entry 2 is not host=key"),
        ("h=", "entry 1 is not host=key"),
        ("h=sk secret", "entry 1 has characters"),
        ("sk-secret=h", "entry 1 is for a host that no model"),
        ("h=sk-secret,H=sk-secret", "entry 2 is for a host that has a key already"),
        ("api.example.com=sk-secret", "entry 1 is for a host that no model"),
    ],
)
def test_keys_that_cannot_be_are_refused_without_telling_them(keys: str, words: str) -> None:
    with pytest.raises(StartRefused, match=r"^FALLBACK_API_KEYS") as refused:
        read_fallbacks(["m@https://h/v1", "other"], keys, FIRST)
    assert words in str(refused.value)
    assert "secret" not in str(refused.value)
