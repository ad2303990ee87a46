"""eval: paired comparison of two results over the images that both have."""

from __future__ import annotations

import csv
import json
import math
import re
import unicodedata
from pathlib import Path

import pytest

from c2fdft_cli.engine.evaluate.compare import (
    as_json,
    in_common,
    in_words,
    paired_comparison,
)
from c2fdft_cli.engine.evaluate.metrics import find_metrics
from c2fdft_cli.engine.evaluate.rows import write_csv
from c2fdft_cli.errors import DataError
from c2fdft_cli.metrics.statistics import compare
from tests.kit.evaluate import degraded, run, save
from tests.kit.formula import photo


def test_results_are_compared_by_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out, target = folders
    for k in (1, 2):
        save(tmp_path / "b" / f"{k + 9}.png", degraded(k, 40))
    a, b = run(out, target), run(tmp_path / "b", target)
    paired = paired_comparison(a, b)
    assert (paired.scores["psnr"].wins, paired.scores["psnr"].images) == (2, 2)
    assert paired.not_in_both == ["9"]
    assert as_json(paired)["difference"]["psnr"]["mean"] > 0
    assert in_words(paired.scores)[0].startswith("PSNR: A - B = +")
    one = run(save(tmp_path / "c" / "9.png", degraded(0, 9)), target / "9.png")
    assert (
        "(one image: no interval), A wins 0, B 0, ties 1"
        in in_words(paired_comparison(one, one).scores)[0]
    )
    exact = run(target, target)
    equal = paired_comparison(exact, exact)
    assert in_words(equal.scores)[0] == (
        "PSNR: no finite difference, A wins 0, B 0, ties 3; mean of A inf, of B inf"
    )
    facts = as_json(equal)
    assert (facts["mean"]["psnr"], facts["difference"]["psnr"]["mean"]) == (None, None)
    assert facts["difference"]["psnr"]["ties"] == 3
    assert facts["images"][0]["difference"] == {"psnr": None, "ssim": 0}
    json.dumps(facts, allow_nan=False)
    x, y = (save(tmp_path / name / f"{name}.png", photo(0)) for name in "xy")
    other = run(x, y)
    with pytest.raises(DataError, match="no image in common"):
        paired_comparison(a, other)


def test_each_difference_of_all_scores_is_kept(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out, target = folders
    for k in (1, 2):
        save(tmp_path / "b" / f"{k + 9}_out.png", degraded(k, 40))
    metrics = find_metrics("haarpsi,gmsd")
    a, b = (run(side, target, metrics=metrics) for side in (out, tmp_path / "b"))
    paired = paired_comparison(a, b)
    assert list(paired.scores) == ["psnr", "ssim", "haarpsi", "gmsd"]
    assert [(one.wins, one.losses) for one in paired.scores.values()] == [(2, 0)] * 4
    assert paired.scores["haarpsi"].mean > 0 > paired.scores["gmsd"].mean
    psnr, ssim, *_ = in_words(paired.scores)
    assert re.match(r"PSNR: A - B = \S+\.\d\d dB \[\S+\.\d\d, \S+\.\d\d\] \(95 %\), A", psnr)
    assert re.match(r"SSIM: A - B = \S+\.\d{4} \[\S+\.\d{4}, \S+\.\d{4}\] \(95 %\), A", ssim)
    facts = as_json(paired)
    assert [(row["name"], row["name_b"]) for row in facts["images"]] == [
        ("10", "10_out"),
        ("11", "11_out"),
    ]
    for row, ours, theirs in zip(facts["images"], a.rows[1:], b.rows, strict=True):
        assert row["b"]["haarpsi"] == theirs.more["haarpsi"]
        assert row["difference"]["psnr"] == ours.psnr - theirs.psnr
    assert facts["not_in_both"] == ["9"]
    write_csv(tmp_path / "rows.csv", a, {ours.name: other for ours, other in paired.common})
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-5:] == ["protocol", "b_psnr", "b_ssim", "b_haarpsi", "b_gmsd"]
    assert [row["b_gmsd"] for row in rows] == ["", *(str(row.more["gmsd"]) for row in b.rows)]


def test_both_means_are_over_the_images_that_both_have(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    out, target = folders
    for k in (1, 2):
        save(tmp_path / "b" / f"{k + 9}.png", degraded(k, 40))
    a, b = run(out, target), run(tmp_path / "b", target)
    paired = paired_comparison(b, a)
    one = paired.scores["psnr"]
    assert (one.mean_a, one.mean_b) == (
        b.psnr,
        pytest.approx((a.rows[1].psnr + a.rows[2].psnr) / 2),
    )
    assert as_json(paired)["mean"]["psnr"] == one.mean_b
    assert in_words(paired.scores)[0].endswith(
        f"; mean of A {one.mean_a:.2f}, of B {one.mean_b:.2f}"
    )


def test_a_mean_over_fewer_images_than_were_compared_says_so() -> None:
    infinite = compare([math.inf, 31.0, 30.0], [30.0, 30.0, 29.0])
    (line,) = in_words({"psnr": infinite})
    assert "A wins 3, B 0, ties 0; mean over 2 of 3 images (the others have infinite " in line
    (line,) = in_words({"psnr": compare([31.0, 30.0], [30.0, 29.0])})
    assert line.endswith("A wins 2, B 0, ties 0; mean of A 30.50, of B 29.50")


def test_results_of_other_names_are_compared_by_target(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    out, target = folders
    for k in (0, 1, 2):
        save(tmp_path / "b" / f"{k + 9}_derained.png", degraded(k, 40))
    a, b = run(out, target), run(tmp_path / "b", target)
    assert [(row.name, other.name) for row, other in in_common(a, b)] == [
        ("9", "9_derained"),
        ("10", "10_derained"),
        ("11", "11_derained"),
    ]
    assert paired_comparison(a, b).not_in_both == []


def test_variants_of_one_target_are_compared_by_their_inputs(tmp_path: Path) -> None:
    for k in (1, 2):
        save(tmp_path / "a" / f"901_{k}.png", degraded(k))
        save(tmp_path / "b" / f"901_{k}_out.png", degraded(k, 40))
        save(tmp_path / "set" / "rainy_image" / f"901_{k}.jpg", degraded(k))
    save(tmp_path / "set" / "ground_truth" / "901.jpg", photo(0))
    a, b = (run(tmp_path / side, tmp_path / "set") for side in "ab")
    assert paired_comparison(a, b).not_in_both == []
    a, b = (run(tmp_path / side, tmp_path / "set" / "ground_truth") for side in "ab")
    with pytest.raises(DataError, match="no image in common"):  # the target alone is ambiguous
        paired_comparison(a, b)


def test_names_match_with_composed_and_decomposed_accents(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "Füße") for form in ("NFC", "NFD"))
    save(tmp_path / "out" / f"{nfd}.png", degraded(0))
    save(tmp_path / "b" / f"{nfc}.png", degraded(0, 40))
    save(tmp_path / "target" / f"{nfc}.png", photo(0))
    a, b = run(tmp_path / "out", tmp_path / "target"), run(tmp_path / "b", tmp_path / "target")
    assert [row.name for row in a.rows] == [nfd]
    assert len(in_common(a, b)) == 1
