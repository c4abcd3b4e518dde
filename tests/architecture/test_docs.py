"""The documentation is held complete: what the code declares, it names; what it names, there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client.metrics import MetricWrapperBase

from duologue.bench.chaos import checks
from duologue.bench.fields import Field, fields
from duologue.bench.mock_llm import MockConfig
from duologue.bench.options import SCENARIOS, Load, Output, Where
from duologue.config import settings_tables
from duologue.observability import metrics
from duologue.protocol import codes, frames

ROOT = Path(__file__).parents[2]
RUNNING = ROOT / "docs/operations/running.md"
CHAOS = ROOT / "docs/chaos.md"
BENCH = ROOT / "docs/bench.md"
MOCK_LLM = ROOT / "docs/mock-llm.md"
PROTOCOL = ROOT / "docs/protocol.md"
SETTINGS = ROOT / "docs/operations/settings.md"

_GUIDES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
_PATH = re.compile(r"`((?:src|tests|docs|deploy)/[^`\s*<>]+)`")
_CODE_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def _metrics_table() -> list[str]:
    return [_metrics_row(each) for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)]


def _metrics_row(metric: MetricWrapperBase) -> str:
    [family] = metric.describe()
    name = family.name + ("_total" if family.type == "counter" else "")
    labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "none"
    return f"| `{name}` | {family.type} | {labels} | {family.documentation} |"


def _invariants_table() -> list[str]:
    return [f"| {name} | {' '.join((holds.__doc__ or '').split())} |" for name, holds in checks.ALL.items()]


def _mock_llm_table() -> list[str]:
    return [
        _option_row(each, f"`{each.name}`", _default(each), _bounds(each), each.meaning) for each in fields(MockConfig)
    ]


def _bench_table() -> list[str]:
    """Return a row for each option of `duologue bench`; a scenario's own name it."""
    common = [
        _option_row(each, _default(each), each.meaning) for struct in (Where, Output, Load) for each in fields(struct)
    ]
    return common + [
        _option_row(each, _default(each), f"`{name}`: {each.meaning}")
        for name, struct in SCENARIOS.items()
        for each in fields(struct)
        if not issubclass(struct, Load) or each.default != getattr(Load(), each.name, None)
    ]


def _option_row(option: Field, *cells: str) -> str:
    return " | ".join([f"| `{option.option}`", *cells]) + " |"


def _default(option: Field) -> str:
    match option.default:
        case None:
            return "none"
        case bool():
            return "off"
        case str():
            return option.default
        case number:
            return f"{number:g}"


def _bounds(option: Field) -> str:
    return "" if option.least is None else f"{option.least:,g} to {option.most:,.0f}"


def _frame_types() -> list[str]:
    kinds = [*get_args(frames.ServerFrame), *get_args(frames.ClientFrame)]
    return sorted({str(kind.__struct_config__.tag) for kind in kinds})


def test_running_md_compared_with_the_metrics_is_complete() -> None:
    table = _metrics_table()
    written = [line for line in RUNNING.read_text().splitlines() if line.startswith("| `duologue_")]
    assert written == table, "the table of metrics should be:\n" + "\n".join(table)


def test_chaos_md_compared_with_the_invariants_is_complete() -> None:
    table = _invariants_table()
    _, _, section = CHAOS.read_text().partition("| invariant |")
    written = [line for line in section.splitlines()[2:] if line.startswith("| ")]
    assert written == table, "the table of invariants should be:\n" + "\n".join(table)


def test_mock_llm_md_compared_with_its_configuration_is_complete() -> None:
    table = _mock_llm_table()
    written = [
        line for line in MOCK_LLM.read_text().splitlines() if re.match(r"\| `--[a-z0-9-]+` \| `[a-z0-9_]+` \|", line)
    ]
    assert written == table, "the table of options should be:\n" + "\n".join(table)


def test_bench_md_compared_with_the_options_is_complete() -> None:
    table = _bench_table()
    written = [line for line in BENCH.read_text().splitlines() if line.startswith("| `--")]
    assert written == table, "the table of options should be:\n" + "\n".join(table)


@pytest.mark.parametrize("name", SCENARIOS)
def test_bench_md_explains_each_scenario(name: str) -> None:
    assert f"| `{name}` |" in BENCH.read_text()


def test_settings_md_compared_with_the_settings_is_complete() -> None:
    assert SETTINGS.read_text().endswith(settings_tables()), "run: python -m duologue.config --tables"


@pytest.mark.parametrize("code", [code.value for code in codes.ErrorCode])
def test_protocol_md_explains_each_error_code(code: str) -> None:
    assert f"`{code}`" in PROTOCOL.read_text()


@pytest.mark.parametrize("code", [code.value for code in codes.CloseCode])
def test_protocol_md_explains_each_close_code(code: int) -> None:
    assert re.search(rf"\b{code}\b", PROTOCOL.read_text())


@pytest.mark.parametrize("kind", _frame_types())
def test_protocol_md_explains_each_type_of_frame(kind: str) -> None:
    assert f"`{kind}`" in PROTOCOL.read_text() or f'"type":"{kind}"' in PROTOCOL.read_text().replace(": ", ":")


@pytest.mark.parametrize("guide", _GUIDES, ids=[str(path.relative_to(ROOT)) for path in _GUIDES])
def test_guide_names_only_files_that_exist(guide: Path) -> None:
    text = guide.read_text()
    links = [guide.parent / link for link in _LINK.findall(_CODE_BLOCK.sub("", text)) if "://" not in link]
    named = [ROOT / path for path in _PATH.findall(text)]
    assert not [str(path) for path in [*links, *named] if not path.exists()]
