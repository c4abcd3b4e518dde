"""How much of the machine the built-in model's process takes."""

from pathlib import Path

import pytest

from duologue.llm.builtin_server import _allowed_cores


@pytest.mark.parametrize(("limit", "cores"), [("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1)])
def test_model_in_a_container_with_a_quota_counts_only_whole_cores_of_it(
    limit: str, cores: int, tmp_path: Path
) -> None:
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert _allowed_cores(tmp_path / "cpu.max") == cores


@pytest.mark.parametrize("limit", ["max 100000", ""])
def test_model_without_a_quota_counts_any_number_of_cores(limit: str, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    assert _allowed_cores(tmp_path / "cpu.max") > 1000


def test_model_where_there_are_no_quotas_counts_any_number_of_cores(tmp_path: Path) -> None:
    assert _allowed_cores(tmp_path / "cpu.max") > 1000
