"""eval: the HTML report that shows the pictures with their scores."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2fdft_cli.engine.evaluate import report
from c2fdft_cli.engine.evaluate.files import evaluate_files
from c2fdft_cli.engine.evaluate.job import EvalOptions
from c2fdft_cli.engine.evaluate.metrics import find_metrics
from c2fdft_cli.engine.evaluate.photos import evaluate_alone
from c2fdft_cli.engine.evaluate.report import (
    Gallery,
    error_map,
    with_pictures,
    write_report,
)
from c2fdft_cli.engine.evaluate.rows import document
from tests.kit.evaluate import save
from tests.kit.formula import photo

NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def report_of(
    out: Path,
    target: Path,
    folder: Path,
    *,
    degraded: Path | None = None,
    protocol: str | None = None,
) -> str:
    """Write a report and return its page; without `degraded` the results count as the inputs."""
    pictures = Gallery()
    options = EvalOptions(protocol, pictures=True)
    job = evaluate_files(out, target, options, degraded or out)
    result = with_pictures(job, pictures).run()
    recipe = {"task": "</script><b>", "data": {"synthesis": {"sigma": [5, math.nan]}}}
    command = "c2fdft eval <a> & b"
    write_report(folder, document(result), pictures, command, ["protocol rgb"], recipe)
    return (folder / "index.html").read_text()


def data_of(page: str) -> dict[str, Any]:
    text = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert text is not None
    return json.loads(text[1])  # type: ignore[no-any-return]


def test_the_report_is_self_contained(folders: tuple[Path, Path], tmp_path: Path) -> None:
    page = report_of(*folders, tmp_path / "report")
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert "default-src 'none'" in page
    data = data_of(page)
    assert data["about"]["command"] == "c2fdft eval <a> & b"
    # another program's file may hold numbers that JSON does not have
    synthesis = {"synthesis": {"sigma": [5, None]}}
    assert data["about"]["recipe"] == {"task": "</script><b>", "data": synthesis}
    assert [row["name"] for row in data["images"]] == ["9", "10", "11"]
    assert list(data["pictures"][0]) == ["degraded", "restored", "target", "error"]
    assert data["pictures"][0]["error"].startswith("data:image/webp;base64,")
    assert json.loads((tmp_path / "report" / "eval.json").read_text())["protocol"] == "rgb"


PAGE_STUB = """
class Node {
  static added = 0;
  children = []; style = {}; dataset = {}; classList = { toggle() {} };
  constructor(tag) { this.tag = tag; }
  append(...nodes) { this.children.push(...nodes); Node.added += nodes.length; }
  replaceChildren(...nodes) { this.children = nodes; }
  setAttribute() {}
  remove() {}
  querySelector() { return new Node("img"); }
  get tHead() { return this.head ??= new Node("thead"); }
  get tBodies() { return this.bodies ??= [new Node("tbody")]; }
  get lastElementChild() { return this.last ??= new Node("pre"); }
}
const nodes = {};
globalThis.location = {
  at: "",
  get hash() { return this.at; },
  set hash(text) { this.at = text.startsWith("#") ? text : `#${text}`; },
};
globalThis.document = {
  createElement: tag => new Node(tag),
  createElementNS: (_, tag) => new Node(tag),
  getElementById: id => nodes[id] ??= new Node(id),
};
"""
SHOWN = """
const cell = one => one.children.length ? one.children[0].tag : one.textContent ?? "";
const { tHead, tBodies } = nodes.rows, lines = [tHead, ...tBodies].flatMap(one => one.children);
console.log(JSON.stringify(lines.map(line => line.children.map(cell))));
"""
"""Prints the table of images: the text of each cell, or the tag of what is in it."""
MANY = """
const many = JSON.parse(nodes.data.textContent);
const copies = three => Array.from({ length: COUNT }, (_, i) => ({ ...three[i % 3] }));
for (const part of [many, many.degraded]) part.images = copies(part.images);
many.pictures = many.images.map((_, i) => i < 100 ? many.pictures[i % 3] : {});
many.images.forEach((row, i) => { row.name = `${i}`; row.psnr = i; });
nodes.data.textContent = JSON.stringify(many);
"""
"""Makes a set of COUNT images of the three."""
USED = """
const result = {};
const does = (name, act) => {
  const before = Node.added, [first] = nodes.rows.tBodies[0].children;
  act();
  onhashchange();
  const body = nodes.rows.tBodies[0].children, { hash } = location;
  result[name] = { added: Node.added - before, rebuilt: body[0] !== first, rows: body.length,
    first: body[0].children[0].textContent, hash, caption: nodes.caption?.textContent,
    button: nodes.more.hidden ? null : nodes.more.textContent };
};
const key = name => () => onkeydown({ key: name });
does("start", () => {});
does("open", () => { location.hash = "#open=9"; });
does("right", key("ArrowRight"));
does("left", key("ArrowLeft"));
does("view", key("1"));
does("sort", () => { location.hash += "&sort=-psnr"; });
does("sorted right", key("ArrowRight"));
does("more", () => nodes.more.onclick());
does("close", key("Escape"));
does("more again", () => nodes.more.onclick());
console.log(JSON.stringify(result));
"""
"""Uses the page and prints what each step changes."""


def run_script(page: str, folder: Path, before: str, after: str) -> Any:
    """Run the page's script in node with a stand-in for the browser; return what it prints."""
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    data = f"nodes.data = {{ textContent: {json.dumps(json.dumps(data_of(page)))} }};"
    (folder / "page.js").write_text(PAGE_STUB + data + before + script + after)
    done = subprocess.run([str(NODE), folder / "page.js"], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_script_of_the_page_fills_the_table(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """The views have their columns also where the first image has fewer of them."""
    (shutil.copytree(folders[0], tmp_path / "degraded") / "9.png").unlink()
    page = report_of(*folders, tmp_path / "report", degraded=tmp_path / "degraded")
    header, *rows = run_script(page, tmp_path, "", SHOWN)
    assert header[0].startswith("image")
    assert header[-4:] == ["degraded", "restored", "target", "error"]
    assert [row[0] for row in rows] == ["9", "10", "11"]
    assert [row[-4:] for row in rows] == [["", "img", "img", "img"], ["img"] * 4, ["img"] * 4]


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_page_of_a_large_set_builds_only_what_changes(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    page = report_of(*folders, tmp_path / "report")
    done = run_script(page, tmp_path, MANY.replace("COUNT", "150_000"), USED)
    assert (done["start"]["rows"], done["start"]["first"]) == (500, "0")
    assert done["start"]["button"] == "show 500 more images (149500 are not shown)"
    for name in ("open", "right", "left", "view", "sorted right", "close"):
        assert not done[name]["rebuilt"], name
        assert done[name]["added"] < 10, name  # the buttons of the views
    assert done["right"]["caption"].startswith("10  PSNR")
    assert done["right"]["hash"] == "#open=10"
    assert done["left"]["caption"].startswith("9  PSNR")
    assert done["view"]["hash"] == "#open=9&view=degraded"
    assert done["sort"]["rebuilt"]
    assert done["sort"]["first"] == "149999"  # of all rows, not of those that were built
    assert done["sorted right"]["caption"].startswith("8  PSNR")
    assert done["more"]["rows"] == 1000
    assert done["more"]["button"] == "show 1000 more images (149000 are not shown)"
    assert done["close"]["hash"] == "#view=degraded&sort=-psnr"
    assert (done["close"]["rows"], done["more again"]["rows"]) == (1000, 2000)


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_page_shows_all_rows_after_some_clicks(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    page = report_of(*folders, tmp_path / "report")
    done = run_script(page, tmp_path, MANY.replace("COUNT", "1200"), USED)
    assert done["close"]["button"] == "show 200 more images (200 are not shown)"
    assert (done["more again"]["rows"], done["more again"]["button"]) == (1200, None)


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
    (shutil.copytree(folders[0], tmp_path / "degraded") / "9.png").unlink()
    report_of(*folders, tmp_path / "report", degraded=tmp_path / "degraded")
    first = re.search(r"<tr><td>9</td>(.*?)</tr>", look(""))
    assert first is not None
    assert re.findall(r'<td class="view">(<img)?', first[1]) == ["", "<img", "<img", "<img"]
    assert '<button class="on">2 restored</button>' in look("#open=9&view=degraded")
    save(folders[0] / "9.png", photo(0))  # an infinite PSNR
    report_of(*folders, tmp_path / "report")
    for label, psnr in (("mean", "inf"), ("std", "-")):
        assert f"<tr><td>{label}</td><td>{psnr}</td><td>" in look("")


def test_of_too_many_pictures_those_of_extreme_scores_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report, "MAX_BYTES", 50)
    gallery, other = Gallery(), Gallery()
    views = {"restored": "x" * 6, "target": "y" * 4}
    for k in np.random.default_rng(0).permutation(99):
        (gallery if k % 2 else other).add(f"{k}", float(k), views)
        assert len(gallery.views) <= 5
    assert len(gallery.views) == len(other.views) == 5
    gallery.merge(other)
    assert set(gallery.views) == {"0", "1", "2", "97", "98"}
    assert "the pictures of 5 of 99 images" in gallery.note(99)[0]
    assert gallery.note(5) == []


def test_a_report_of_a_large_set_has_all_scores_and_some_pictures(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = data_of(report_of(*folders, tmp_path / "whole"))
    sizes = [sum(map(len, views.values())) for views in whole["pictures"]]
    monkeypatch.setattr(report, "MAX_BYTES", sum(sizes) - 1)
    data = data_of(report_of(*folders, tmp_path / "report"))
    assert [bool(views) for views in data["pictures"]] == [True, False, True]
    assert len(data["images"]) == 3
    assert any("the pictures of 2 of 3 images" in line for line in data["about"]["lines"])


def test_the_views_of_all_images_have_their_places(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Also if the first image has fewer of them."""
    (shutil.copytree(folders[0], tmp_path / "degraded") / "9.png").unlink()
    page = report_of(*folders, tmp_path / "report", degraded=tmp_path / "degraded")
    data = data_of(page)
    assert "degraded" not in data["pictures"][0]
    assert "degraded" in data["pictures"][1]
    assert data["views"] == ["degraded", "restored", "target", "error"]


def test_the_page_explains_the_error_maps_that_it_has(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    def lines(page: str) -> str:
        return "\n".join(data_of(page)["about"]["lines"])

    plain = lines(report_of(*folders, tmp_path / "rgb"))
    assert "The error maps show" in plain
    assert "without the shift" not in plain
    for side, brighter in zip(folders, (9, 0), strict=True):
        save(side / "9.png", photo(0, 48, 48, strength=brighter))
    large = (side / "9.png" for side in folders)
    assert "without the shift" in lines(report_of(*large, tmp_path / "levin", protocol="levin"))
    gallery, metrics = Gallery(), find_metrics("total_variation", no_reference=True)
    job = evaluate_alone(folders[0], EvalOptions(metrics=metrics, pictures=True))
    result = with_pictures(job, gallery).run()
    write_report(tmp_path / "alone", document(result), gallery, "c2fdft", [])
    alone = (tmp_path / "alone" / "index.html").read_text()
    assert data_of(alone)["views"] == ["restored"]
    assert "error maps" not in lines(alone)


def test_large_pictures_shrink_in_the_report(tmp_path: Path) -> None:
    a, b = (save(tmp_path / name / "x.png", photo(0, 20, 2100)) for name in ("a", "b"))
    page = report_of(a.parent, b.parent, tmp_path / "report")
    assert len(page) < 200_000


def test_the_error_map_ranges_from_black_to_white() -> None:
    target = np.full((1, 4, 3), 200, np.uint8)
    restored = np.array([[200, 216, 168, 0]], np.uint8)[..., None].repeat(3, 2)
    got = error_map(restored, target)
    assert got[0].tolist() == [[0, 0, 0], [255, 0, 0], [255, 255, 0], [255, 255, 255]]
