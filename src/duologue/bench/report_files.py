"""A report in files: as JSON, and as a page beside it."""

from __future__ import annotations

from pathlib import Path

import msgspec


def as_json(report: msgspec.Struct) -> bytes:
    """Return a report as JSON that people read too."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2)


def write_files(report: msgspec.Struct, page: str, folder: Path, name: str) -> Path:
    """Write a report under that name in a folder, which is made if need be; return the path of the JSON.

    Raises:
        OSError: it cannot be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_bytes(as_json(report))
    path.with_suffix(".html").write_text(page, "utf-8")
    return path
