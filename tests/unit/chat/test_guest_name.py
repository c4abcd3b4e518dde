from __future__ import annotations

from pathlib import Path

import pytest

from duologue.chat.guest_name import guest_name
from duologue.domain.ids import is_valid_user_id


def test_guest_name_is_made_once_and_kept(tmp_path: Path) -> None:
    name = guest_name(tmp_path / "sub")
    assert is_valid_user_id(name)
    assert guest_name(tmp_path / "sub") == name
    assert guest_name(tmp_path / "other") != name


def test_guest_name_of_a_strange_login_is_still_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "DOMAIN\\Ä " + "x" * 99)
    assert is_valid_user_id(guest_name(tmp_path))


def test_guest_name_that_is_damaged_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "guest").write_bytes(b"\xff\xfe not a name")
    assert is_valid_user_id(guest_name(tmp_path))
