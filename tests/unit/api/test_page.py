"""The page: its policy, and that it is fetched once."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import httpx
import pytest

from duologue.api import page
from duologue.api.app import create_app
from duologue.api.page import content_security_policy

_HTML = "<!doctype html><title>Ü</title><style>\nbody { margin: 0 }\n</style><script type='module'>run()</script>"


async def _get(tmp_path: Path, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    file = tmp_path / "index.html"
    file.write_text(_HTML, encoding="utf-8")
    transport = httpx.ASGITransport(create_app(title="Test", root_routers=[page.router(file)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, headers=headers)


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


@pytest.mark.parametrize("path", ["/", "/test-ui.html"])
async def test_page_is_served_with_its_own_policy(tmp_path: Path, path: str) -> None:
    answer = await _get(tmp_path, path)
    assert (answer.status_code, answer.text) == (200, _HTML)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["content-security-policy"] == content_security_policy(_HTML)


async def test_page_that_the_browser_has_is_not_sent_again(tmp_path: Path) -> None:
    etag = (await _get(tmp_path, "/")).headers["etag"]
    again = await _get(tmp_path, "/", **{"If-None-Match": f'"other", W/{etag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == etag


async def test_page_asked_by_head_has_no_body(tmp_path: Path) -> None:
    answer = await _get(tmp_path, "/", "HEAD")
    assert answer.status_code == 200
    assert "etag" in answer.headers


def test_policy_names_each_inline_script_and_style() -> None:
    policy = content_security_policy(_HTML + "<script>\r\nmore()\r\n</script>")
    assert f"script-src {_hash('run()')} {_hash(chr(10) + 'more()' + chr(10))};" in policy
    assert f"style-src {_hash(chr(10) + 'body { margin: 0 }' + chr(10))};" in policy
    assert "unsafe-inline" not in policy


def test_policy_of_a_page_without_scripts_allows_none() -> None:
    assert "script-src 'none'" in content_security_policy("<p>Nothing</p>")
