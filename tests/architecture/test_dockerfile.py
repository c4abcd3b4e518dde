"""The image, as far as it can be held without building it: what it is built from, as whom it runs, what it takes in."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


class Instruction(NamedTuple):
    """One instruction of the Dockerfile, its lines joined."""

    word: str
    rest: str


def _instructions() -> list[Instruction]:
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line]


def _stages() -> dict[str, list[Instruction]]:
    """Return the instructions of each stage by its name; the last one's is empty."""
    stages: dict[str, list[Instruction]] = {}
    for instruction in _instructions():
        if instruction.word == "FROM":
            name = instruction.rest.partition(" AS ")[2]
            stages[name] = []
        stages[name].append(instruction)
    return stages


STAGES: Final = _stages()
LAST: Final = STAGES[""]
COPIED: Final = [
    source
    for instruction in _instructions()
    if instruction.word == "COPY" and not instruction.rest.startswith("--from")
    for source in instruction.rest.split()[:-1]
]


def _of(instructions: list[Instruction], word: str) -> list[str]:
    return [instruction.rest for instruction in instructions if instruction.word == word]


def _ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out: the last pattern that matches it, or a folder above it, decides."""
    parts = path.split("/")
    candidates = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        pattern = pattern.replace(r"\[co\]", "[co]")
        if any(re.fullmatch(pattern, candidate) for candidate in candidates):
            ignored = not line.startswith("!")
    return ignored


def test_image_is_built_on_one_version_of_python_that_the_package_knows() -> None:
    bases = [rest.split()[0] for stage in STAGES.values() for rest in _of(stage, "FROM")]
    outside = {base for base in bases if base not in STAGES}
    assert len(outside) == 1
    [base] = outside
    found = re.fullmatch(r"python:(3\.13)\.\d+-slim-trixie", base)
    assert found
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    assert f"Programming Language :: Python :: {found[1]}" in classifiers


def test_image_copies_only_what_exists_and_is_sent_to_the_builder() -> None:
    assert COPIED
    assert not [source for source in COPIED if not (ROOT / source).exists()]
    assert not [source for source in COPIED if _ignored(source)]


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        ".git/config",
        ".venv/bin/python",
        "data/jwt_secret",
        "deploy/compose/.env",
        "src/duologue/__pycache__/cli.cpython-313.pyc",
        "src/duologue/llm/builtin.pyc",
        "tests/conftest.py",
    ],
)
def test_path_that_the_image_is_not_built_from_stays_outside(path: str) -> None:
    assert _ignored(path)


@pytest.mark.parametrize("path", ["src/duologue/cli.py", "src/duologue/delivery/apply.lua"])
def test_path_of_the_package_is_sent_to_the_builder(path: str) -> None:
    assert not _ignored(path)


def test_image_runs_as_a_user_of_its_own_with_a_fixed_number() -> None:
    user = _of(LAST, "USER")[-1]
    found = re.fullmatch(r"(\d+):(\d+)", user)
    assert found
    assert min(int(found[1]), int(found[2])) >= 10000
    assert f"--uid {found[1]}" in " ".join(_of(LAST, "RUN"))


def test_image_starts_the_program_without_a_shell_that_would_keep_signals_from_it() -> None:
    assert json.loads(*_of(LAST, "ENTRYPOINT")) == ["duologue"]
    assert json.loads(*_of(LAST, "CMD")) == ["up"]
    assert not _of(LAST, "HEALTHCHECK")


def test_image_installs_what_is_pinned_by_hash_and_compiles_nothing() -> None:
    runs = [command for stage in STAGES.values() for rest in _of(stage, "RUN") for command in rest.split(" && ")]
    installing = [command for command in runs if "-r requirements" in command]
    assert len(installing) == 3
    assert all("--require-hashes" in command for command in installing)
    assert all("--only-binary :all:" in command for command in installing if "uv pip" in command)
    environment = " ".join(_of(STAGES["dependencies"], "ENV"))
    assert "UV_COMPILE_BYTECODE=1" in environment


def test_image_carries_no_tools_to_build_with() -> None:
    commands = " ".join(_of(LAST, "RUN"))
    packages = re.findall(r"--no-install-recommends (.*?) &&", commands)
    assert packages == ["libgomp1"]
    assert not re.search(r"\b(uv|pip)\b", commands)


def test_dependencies_are_a_layer_that_a_change_of_the_source_does_not_touch() -> None:
    assert "src" not in " ".join(_of(STAGES["dependencies"], "COPY"))
    assert [rest.split()[0] for rest in _of(LAST, "COPY")] == ["--from=dependencies", "--from=package"]
