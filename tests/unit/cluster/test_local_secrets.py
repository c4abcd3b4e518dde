"""The local cluster's secrets: made once, for their owner alone."""

from dataclasses import asdict
from pathlib import Path

import pytest

from duologue.cluster.local_secrets import SECRETS, local_secrets
from duologue.domain.errors import StartRefused


def test_local_secrets_asked_again_are_the_same(tmp_path: Path) -> None:
    assert local_secrets(tmp_path, {}) == local_secrets(tmp_path, {})


def test_local_secrets_just_made_are_long_different_and_private(tmp_path: Path) -> None:
    values = list(asdict(local_secrets(tmp_path, {})).values())
    assert len(set(values)) == len(values)
    assert all(len(value) >= 32 for value in values)
    assert (tmp_path / SECRETS).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("password", ["plain", "it's", 'a "b"', "back\\slash", "$HOME ${X}", "# , % ;"])
def test_local_secrets_given_before_the_first_start_are_kept(tmp_path: Path, password: str) -> None:
    local_secrets(tmp_path, {"POSTGRES_PASSWORD": password})
    assert local_secrets(tmp_path, {}).postgres_password == password


def test_local_secrets_given_anew_after_the_first_start_are_refused(tmp_path: Path) -> None:
    local_secrets(tmp_path, {})
    with pytest.raises(StartRefused, match="REDIS_PASSWORD is not the one this cluster was made with"):
        local_secrets(tmp_path, {"REDIS_PASSWORD": "other"})


def test_local_secrets_of_an_older_version_get_what_they_lack(tmp_path: Path) -> None:
    (tmp_path / SECRETS).write_text("JWT_SECRET='kept'\n")
    made = local_secrets(tmp_path, {})
    assert made.jwt_secret == "kept"
    assert local_secrets(tmp_path, {}) == made
