"""What a model is sent of a conversation."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from duologue.ai_consumer.prompt import build_prompt, estimated_tokens
from duologue.llm.port import PromptMessage


@dataclass(frozen=True)
class Said:
    role: str
    content: str


turns = st.lists(
    st.builds(Said, st.sampled_from(["user", "assistant"]), st.text(min_size=1, max_size=200)), max_size=30
)


def test_prompt_within_the_budget_has_system_history_and_message_in_order() -> None:
    history = [Said("user", "hi"), Said("assistant", "hello")]
    prompt = build_prompt(system_prompt="be kind", history=history, content="and now?", max_history_tokens=1000)
    assert prompt == [
        PromptMessage("system", "be kind"),
        PromptMessage("user", "hi"),
        PromptMessage("assistant", "hello"),
        PromptMessage("user", "and now?"),
    ]


def test_prompt_over_the_budget_keeps_the_newest_from_a_users_turn_on() -> None:
    history = [Said("user", "a" * 400), Said("assistant", "b" * 40), Said("user", "c" * 40), Said("assistant", "d")]
    prompt = build_prompt(system_prompt=None, history=history, content="e", max_history_tokens=50)
    assert [turn.content for turn in prompt] == ["c" * 40, "d", "e"]


def test_prompt_without_system_prompt_has_no_system_turn() -> None:
    assert build_prompt(system_prompt="", history=[], content="x", max_history_tokens=0) == [PromptMessage("user", "x")]


@given(history=turns, budget=st.integers(0, 500), system=st.none() | st.text(max_size=20), content=st.text(max_size=50))
def test_prompt_of_any_history_keeps_its_promises(
    history: list[Said], budget: int, system: str | None, content: str
) -> None:
    prompt = build_prompt(system_prompt=system, history=history, content=content, max_history_tokens=budget)
    if system:
        assert prompt[0] == PromptMessage("system", system)
    kept = prompt[1:-1] if system else prompt[:-1]
    assert prompt[-1] == PromptMessage("user", content)
    assert [(turn.role, turn.content) for turn in kept] == [
        (said.role, said.content) for said in history[len(history) - len(kept) :]
    ]
    assert not kept or kept[0].role == "user"
    assert sum(estimated_tokens(turn.content) for turn in kept) <= budget


@given(st.text(), st.text())
def test_estimated_tokens_of_more_text_never_shrink(one: str, other: str) -> None:
    assert estimated_tokens(one + other) >= max(estimated_tokens(one), estimated_tokens(other))
