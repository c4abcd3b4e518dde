"""The composition root, as far as it decides something itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from duologue import bootstrap
from duologue.bootstrap import migrate_database
from duologue.config import Settings
from duologue.domain.errors import StartRefused
from duologue.llm.port import ModelRefused, ModelTemporaryError
from duologue.llm.scripted import ScriptedModel


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_migrate_in_a_folder_that_others_may_read_makes_the_database_for_its_owner_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    migrate_database(Settings(data_dir=tmp_path), sql=False)
    assert stat.S_IMODE((tmp_path / "duologue.db").stat().st_mode) == 0o600


def test_migrate_where_no_folder_can_be_made_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StartRefused, match=r"cannot be used: .*; set DATA_DIR"):
        migrate_database(Settings(data_dir=tmp_path / "data"), sql=False)


@pytest.mark.parametrize(
    "failure",
    [ModelTemporaryError("it loads", cause="loading"), ModelRefused("the key was refused", cause="http_401")],
    ids=str,
)
async def test_model_that_cannot_answer_is_shown_and_holds_nothing_up(
    failure: ModelTemporaryError | ModelRefused,
) -> None:
    model = ScriptedModel([])
    model.failure = failure
    assert await bootstrap._model_state(model) == str(failure)
