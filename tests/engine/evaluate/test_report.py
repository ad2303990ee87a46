"""eval: the HTML report that shows the pictures with their scores."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from c2fdft_cli.engine.evaluate.files import evaluate_files
from c2fdft_cli.engine.evaluate.job import EvalOptions
from c2fdft_cli.engine.evaluate.report import (
    Encoded,
    error_map,
    with_pictures,
    write_report,
)
from c2fdft_cli.engine.evaluate.rows import document
from tests.kit.evaluate import save
from tests.kit.formula import photo

NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def report_of(out: Path, target: Path, folder: Path) -> str:
    pictures: Encoded = {}
    job = evaluate_files(out, target, EvalOptions(pictures=True), degraded=out)
    result = with_pictures(job, pictures).run()
    recipe = {"task": "</script><b>", "data": {"synthesis": {"sigma": [5, math.nan]}}}
    command = "c2fdft eval <a> & b"
    write_report(folder, document(result), pictures, command, ["protocol rgb"], recipe)
    return (folder / "index.html").read_text()


def test_the_report_is_self_contained(folders: tuple[Path, Path], tmp_path: Path) -> None:
    page = report_of(*folders, tmp_path / "report")
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert "default-src 'none'" in page
    text = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert text is not None
    data = json.loads(text[1])
    assert data["about"]["command"] == "c2fdft eval <a> & b"
    # another program's file may hold numbers that JSON does not have
    synthesis = {"synthesis": {"sigma": [5, None]}}
    assert data["about"]["recipe"] == {"task": "</script><b>", "data": synthesis}
    assert [row["name"] for row in data["images"]] == ["9", "10", "11"]
    assert list(data["pictures"][0]) == ["degraded", "restored", "target", "error"]
    assert data["pictures"][0]["error"].startswith("data:image/webp;base64,")
    assert json.loads((tmp_path / "report" / "eval.json").read_text())["protocol"] == "rgb"


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_script_of_the_report_can_be_parsed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    page = report_of(*folders, tmp_path / "report")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    (tmp_path / "page.js").write_text(script)
    done = subprocess.run([str(NODE), "--check", tmp_path / "page.js"], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_report_works_in_a_browser(folders: tuple[Path, Path], tmp_path: Path) -> None:
    report_of(*folders, tmp_path / "report")

    def look(state: str) -> str:
        page = (tmp_path / "report" / "index.html").as_uri() + state
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        done = subprocess.run(
            [str(CHROMIUM), *flags, profile, "--dump-dom", page],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return done.stdout

    def order(dom: str) -> list[str]:
        return re.findall(r"<tr><td>(\d+)</td>", dom)

    assert order(look("")) == ["9", "10", "11"]
    assert order(look("#sort=psnr")) == ["11", "10", "9"]
    zoomed = look("#sort=-psnr&open=10&view=error")
    assert order(zoomed) == ["9", "10", "11"]
    assert '<div id="zoom" class="open">' in zoomed
    assert '<button class="on">4 error</button>' in zoomed
    assert re.search(r"transform: translate\(.*?\) scale\([\d.]+\)", zoomed)
    assert '<div id="zoom" class="open">' not in look("#open=nobody")
    save(folders[0] / "9.png", photo(0))  # an infinite PSNR
    report_of(*folders, tmp_path / "report")
    for label, psnr in (("mean", "inf"), ("std", "-")):
        assert f"<tr><td>{label}</td><td>{psnr}</td><td>" in look("")


def test_large_pictures_shrink_in_the_report(tmp_path: Path) -> None:
    a, b = (save(tmp_path / name / "x.png", photo(0, 20, 2100)) for name in ("a", "b"))
    page = report_of(a.parent, b.parent, tmp_path / "report")
    assert len(page) < 200_000


def test_the_error_map_ranges_from_black_to_white() -> None:
    target = np.full((1, 4, 3), 200, np.uint8)
    restored = np.array([[200, 216, 168, 0]], np.uint8)[..., None].repeat(3, 2)
    got = error_map(restored, target)
    assert got[0].tolist() == [[0, 0, 0], [255, 0, 0], [255, 255, 0], [255, 255, 255]]
