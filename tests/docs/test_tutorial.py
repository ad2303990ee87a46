"""The tutorial's commands run unchanged and in order, with small pictures and networks."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from c2fdft_cli.data.images.picture import list_images, save_rgb8
from tests.kit.command import run
from tests.kit.formula import picture
from tests.kit.training import MINI

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
EXTRAS = {".onnx": "onnxruntime", ".safetensors": "safetensors"}
TINIER = ("network.heads=[1,1,1,1]", "fine.iterations=4", "fine.periods=[{length: 4, floor: 0.0}]")


def blocks(language: str) -> list[str]:
    text = TUTORIAL.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def missing_extra(line: str) -> str | None:
    """The package that a command needs if it is not installed."""
    needed = [package for suffix, package in EXTRAS.items() if line.endswith(suffix)]
    return next((one for one in needed if importlib.util.find_spec(one) is None), None)


def make_photos(folder: Path) -> None:
    """Write ten rainy and ten clean pictures by formula."""
    for number in range(10):
        (folder / "photos").mkdir(exist_ok=True)
        (folder / "clean").mkdir(exist_ok=True)
        gt = picture(40, 48, number + 50).astype(int)
        rain = 40 * (np.arange(48) % 7 == number % 7)[None, :, None]
        lq = np.clip(gt + rain, 0, 255).astype(np.uint8)
        save_rgb8(folder / "photos" / f"{number}.png", lq)
        save_rgb8(folder / "clean" / f"{number}.png", picture(48, 56, number))


def make_small(recipe: Path) -> None:
    """Shorten the training of a copied recipe to a second."""
    small = OmegaConf.from_dotlist([*MINI, *TINIER])
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(recipe), small), recipe)


@pytest.mark.acceptance
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plots: None) -> None:
    make_photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    for line in "".join(blocks("sh")).splitlines():
        program, *words = shlex.split(line)
        assert program == "c2fdft"
        if missing_extra(line):
            continue
        start = time.monotonic()
        done = run(*words)
        sys.stdout.write(f"$ {line}\n{done.output}[{time.monotonic() - start:.1f} s]\n")
        assert done.exit_code == 0, f"{line}\n{done.output}"
        if words[:2] == ["recipes", "copy"]:
            make_small(tmp_path / "mine.yaml")
    for folder in ("restored", "averaged", "mine"):
        assert len(list_images(tmp_path / folder)) == 10, folder
    for made in ("pairs.png", "report/index.html", "runs/fine/curves.png", "runs/tuned/fine.pt"):
        assert (tmp_path / made).is_file(), made
    for code in blocks("python"):
        exec(compile(code, "tutorial.md", "exec"), {})


def test_the_page_has_the_expected_commands() -> None:
    """This fails if the page loses commands, or if one is no longer found by the test."""
    lines = "".join(blocks("sh")).splitlines()
    used = {line.split()[1] for line in lines}
    assert used >= {"restore", "prepare", "train-coarse", "sweep-steps", "train-fine", "eval",
                    "convert"}  # fmt: skip
    text = TUTORIAL.read_text(encoding="utf-8")
    assert len(re.findall(r"^c2fdft ", text, re.MULTILINE)) == len(lines)
