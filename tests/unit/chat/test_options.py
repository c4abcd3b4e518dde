from __future__ import annotations

import pytest

from duologue.chat.options import checked_user
from duologue.client.address import server_address
from duologue.domain.errors import StartRefused


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("localhost:8080", "http://localhost:8080"),
        ("https://chat.example.org/base/", "https://chat.example.org/base"),
    ],
)
def test_server_address_takes_what_people_write(url: str, address: str) -> None:
    assert server_address(url) == address


@pytest.mark.parametrize("url", ["ftp://x", "http://", "", "http://a b"])
def test_server_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(StartRefused):
        server_address(url)


def test_user_that_cannot_be_one_is_refused() -> None:
    assert checked_user("ada@example.org") == "ada@example.org"
    with pytest.raises(StartRefused):
        checked_user("ada lovelace")
