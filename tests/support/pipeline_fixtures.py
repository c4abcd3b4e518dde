"""Fixtures of the pipeline, for the `conftest.py` of the packages that use it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.pipeline import Pipeline, open_pipeline

from duologue.store.migrate import migrate


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "duologue.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
async def pipeline(valkey: str, migrated: Path, tmp_path: Path) -> AsyncIterator[Pipeline]:
    """A pipeline for one test."""
    path = tmp_path / "duologue.db"
    shutil.copyfile(migrated, path)
    async with open_pipeline(valkey, f"sqlite:///{path}") as opened:
        yield opened
