"""The signing secret: made once, private, never short."""

from __future__ import annotations

from pathlib import Path

import pytest

from duologue.auth.secret import MIN_SECRET_BYTES, checked_secret, kept_secret, secret_of
from duologue.domain.errors import StartRefused


def test_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    secret = secret_of(tmp_path)
    assert len(secret) >= MIN_SECRET_BYTES
    assert secret_of(tmp_path) == secret
    assert (tmp_path / "jwt_secret").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["jwt_secret"]


def test_secret_too_short_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="JWT_SECRET"):
        checked_secret("x" * 31)
    (tmp_path / "jwt_secret").write_text("")
    with pytest.raises(StartRefused):
        secret_of(tmp_path)


def test_secret_is_found_where_it_was_made_and_never_made_by_looking(tmp_path: Path) -> None:
    assert kept_secret(tmp_path) is None
    assert kept_secret(tmp_path / "nowhere") is None
    assert list(tmp_path.iterdir()) == []
    secret = secret_of(tmp_path)
    assert kept_secret(tmp_path) == secret
