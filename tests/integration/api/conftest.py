"""The API on a real database and a real Valkey."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.api import Api, database_url, open_api

from duologue.store.migrate import migrate


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an empty database of the current schema: making one takes as long as a test."""
    folder = tmp_path_factory.mktemp("migrated")
    migrate(database_url(folder))
    return folder


@pytest.fixture
def folder(migrated: Path, tmp_path: Path) -> Path:
    """A folder with a database of the test's own."""
    shutil.copytree(migrated, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
async def api(folder: Path, valkey: str) -> AsyncIterator[Api]:
    """An API with the settings' defaults."""
    async with open_api(folder, valkey) as opened:
        yield opened
