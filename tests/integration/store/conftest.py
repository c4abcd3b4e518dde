"""A migrated database of each kind that the store knows."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.store.scenario import Scenario

from duologue.store.database import Database, open_database
from duologue.store.migrate import migrate


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty file of SQLite, to copy."""
    path = tmp_path_factory.mktemp("store") / "template.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite"])
def database_url(migrated_file: Path, tmp_path: Path) -> str:
    path = tmp_path / "duologue.db"
    shutil.copyfile(migrated_file, path)
    return f"sqlite:///{path}"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with open_database(database_url) as opened:
        yield opened


@pytest.fixture
async def ada(database: Database) -> Scenario:
    return await Scenario.open(database)
