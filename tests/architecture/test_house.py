"""The house's own rules, held by tests: imports point one way, files speak of the project alone."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_REGISTRY_HOSTS = re.compile(r"(pythonhosted|pypi|npmjs|maven|crates)\.(org|io|com)")
_MACHINE_PATHS = re.compile(r"(^|[^A-Za-z0-9_.$}/-])/(work|root|home/[a-z]+)/")


def _tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_imports_of_the_package_point_one_way() -> None:
    result = subprocess.run([ROOT / ".venv/bin/lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("pattern", [_REGISTRY_HOSTS, _MACHINE_PATHS], ids=["registry hosts", "paths of a machine"])
def test_tracked_files_name_no_address_of_the_workplace(pattern: re.Pattern[str]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in _tracked_files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(errors="ignore").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found
