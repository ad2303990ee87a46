"""The Dockerfiles copy files that exist, and install extras that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docs" / "docker").glob("*.Dockerfile"))


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_a_dockerfile_names_existing_files_and_extras(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    copied = [path for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)
              for path in line.split()]  # fmt: skip
    assert [path for path in copied if not (ROOT / path).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = [project["project"]["readme"], *project["project"]["license-files"]]
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed += [*wheel["packages"], *{path.split("/")[0] for path in wheel["force-include"]}]
    assert {"pyproject.toml", *needed} <= set(copied)
    (extras,) = re.findall(r"'/src\[([\w,-]+)\]'", text)
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])
