"""The scripts in docs/examples run, and Python code in the documents uses existing names."""

from __future__ import annotations

import ast
import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests.kit.formula import picture
from tests.kit.training import MINI

ROOT = Path(__file__).parents[2]
TINY = ROOT / "recipes" / "tiny.yaml"
SHORT = (
    "coarse.iterations=4",
    "coarse.periods=[{length: 4, floor: 1.0e-5}]",
    "fine.iterations=4",
    "fine.periods=[{length: 4, floor: 0.0}]",
)
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
WRITTEN = {
    "one_photo": ["photo_dry.png"],
    "folder": ["dry/0.jpg", "dry/1.jpg"],
    "uncertainty": ["mean.png", "deviation.png"],
    "train_and_score": ["runs/fine/fine.pt"],
    "pipeline": [],
}
SAID = {
    "one_photo": "",
    "folder": "1 of 3 images failed",
    "uncertainty": "least certain at x=",
    "train_and_score": "derain: ",
    "pipeline": "the gradient of the mean brightness is at most ",
}


def test_every_example_is_tested_and_documented() -> None:
    page = (ROOT / "docs" / "howto" / "examples.md").read_text(encoding="utf-8")
    assert {path.stem for path in EXAMPLES} == WRITTEN.keys() == SAID.keys()
    for path in EXAMPLES:
        assert f'--8<-- "examples/{path.name}"' in page


@pytest.mark.parametrize(
    "path",
    [
        # whose commands the tutorial has too
        pytest.param(path, marks=[pytest.mark.acceptance] * (path.stem == "train_and_score"))
        for path in EXAMPLES
    ],
    ids=lambda path: path.stem,
)
def test_an_example_runs(path, tmp_path, monkeypatch, capsys, pair_folder) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(40, 56, 1)).save("photo.jpg")
    Path("photos").mkdir()
    for number in range(2):
        Image.fromarray(picture(32, 40, number)).save(f"photos/{number}.png")
    Path("photos/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    shutil.copytree(pair_folder, "pairs")
    small = OmegaConf.from_dotlist([*MINI, *SHORT])
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(TINY), small), "mine.yaml")
    runpy.run_path(str(path), run_name="__main__")
    assert SAID[path.stem] in capsys.readouterr().out
    for made in WRITTEN[path.stem]:
        with Path(made).open("rb") as file:
            assert file.read(4)
        if made.endswith((".png", ".jpg")):
            assert np.asarray(Image.open(made)).std() > 0


def python_blocks() -> Iterator[tuple[str, str]]:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text(encoding="utf-8")
        for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if "--8<--" not in code and "->" not in code.splitlines()[-1]:
                yield page.relative_to(ROOT).as_posix(), code


@pytest.mark.parametrize(("page", "code"), list(python_blocks()))
def test_python_in_the_documents_parses_and_imports_existing_names(page, code) -> None:
    imports = [node for node in ast.walk(ast.parse(code, page))
               if isinstance(node, ast.Import | ast.ImportFrom)]  # fmt: skip
    ours = [node for node in imports if "c2fdft_cli" in ast.unparse(node)]
    exec(compile(ast.Module(ours, []), page, "exec"), {})
