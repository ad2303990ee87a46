"""eval without targets: rows, paired comparison, report, and photos that cannot be scored."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.engine.evaluate.compare import as_json, in_words, paired_comparison
from c2fdft_cli.engine.evaluate.job import EvalOptions, EvalResult
from c2fdft_cli.engine.evaluate.metrics import describe_metric, find_metrics
from c2fdft_cli.engine.evaluate.photos import evaluate_alone
from c2fdft_cli.engine.evaluate.report import Gallery, with_pictures, write_report
from c2fdft_cli.engine.evaluate.rows import document, table_of, write_csv
from c2fdft_cli.errors import DataError, ResourceError, UsageError
from c2fdft_cli.metrics.full_reference import load_piq
from tests.kit.images import NO_FILES, no_file


def photo(k: int, strength: float) -> np.ndarray[Any, Any]:
    y, x, c = np.mgrid[0:40, 0:48, 0:3]
    clean = 128 + 60 * np.sin(0.3 * x + k) * np.cos(0.25 * y + c)
    noise = np.random.default_rng(k).normal(0, strength, clean.shape)
    return (clean + noise).clip(0, 255).round().astype(np.uint8)


def fill(folder: Path, strength: float) -> Path:
    (folder / "sub").mkdir(parents=True)
    for k, name in enumerate(("2", "10", "sub/a")):
        save_rgb8(folder / f"{name}.png", photo(k, strength))
    return folder


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_reported_like_an_unreadable_image(noisy: Path, kind: str) -> None:
    no_file(noisy / "10.png", kind)
    result = run(noisy, "total_variation")
    assert len(result.rows) == 2
    assert "10.png" in result.unreadable[0]
    assert result.failure is not None


def run(source: Path, names: str = "all", **options: Any) -> EvalResult:
    metrics = find_metrics(names, no_reference=True)
    return evaluate_alone(source, EvalOptions(metrics=metrics, **options)).run()


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    return fill(tmp_path / "noisy", 12)


def test_rows_have_no_psnr(noisy: Path) -> None:
    result = run(noisy)
    assert [row.name for row in result.rows] == ["2", "10", "sub/a"]
    facts = document(result)
    json.dumps(facts, allow_nan=False)
    assert set(facts["mean"]) == {"blur_effect", "noise_sigma", "total_variation"}
    assert set(facts["images"][0]) == {"name", *facts["mean"]}
    assert facts["mean"]["noise_sigma"] == pytest.approx(12, rel=0.15)
    assert (facts["protocol"], facts["worst"]) == ("no-reference", [])
    header, *_ = table_of(result)
    assert header == ["image", "BLUR_EFFECT", "NOISE_SIGMA", "TOTAL_VARIATION"]


def test_one_image_can_be_scored_without_its_border(noisy: Path) -> None:
    whole = run(noisy / "10.png", "noise_sigma").rows[0]
    assert whole.name == "10"
    inner = run(noisy / "10.png", "noise_sigma", border=4).rows[0]
    save_rgb8(noisy / "crop.png", np.ascontiguousarray(photo(1, 12)[4:-4, 4:-4]))
    assert inner.more == run(noisy / "crop.png", "noise_sigma").rows[0].more
    with pytest.raises(DataError, match="nothing is left inside a border of 20 px"):
        run(noisy / "10.png", border=20)


def test_a_name_of_dots_and_a_suffix_is_kept(noisy: Path) -> None:
    odd = (noisy / "10.png").rename(noisy / "..png")
    assert [row.name for row in run(odd, "total_variation").rows] == [odd.stem]


def test_the_lower_score_wins(noisy: Path, tmp_path: Path) -> None:
    a, b = (run(one, "noise_sigma") for one in (fill(tmp_path / "clean", 2), noisy))
    paired = paired_comparison(a, b)
    assert list(paired.scores) == ["noise_sigma"]
    line = in_words(paired.scores)[0]
    assert line.startswith("NOISE_SIGMA: A - B = -")
    assert "A wins 3, B 0, ties 0; mean of A " in line
    facts = as_json(paired)
    told = facts["difference"]["noise_sigma"]
    assert (told["wins"], told["losses"], told["ties"]) == (3, 0, 0)
    assert facts["mean"]["noise_sigma"] == pytest.approx(12, rel=0.15)


def test_csv_and_report_hold_the_scores(noisy: Path, tmp_path: Path) -> None:
    pictures = Gallery()
    metrics = find_metrics("blur_effect", no_reference=True)
    job = evaluate_alone(noisy, EvalOptions(metrics=metrics, pictures=True))
    result = with_pictures(job, pictures).run()
    write_csv(tmp_path / "rows.csv", result, {})
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "blur_effect", "protocol"]
    write_report(tmp_path / "page", document(result), pictures, "c2fdft", [])
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count("data:image/webp") == 3


def test_photos_that_differ_only_in_their_suffix_have_their_own_pictures(tmp_path: Path) -> None:
    for k, suffix in enumerate((".png", ".bmp")):
        save_rgb8(tmp_path / f"a{suffix}", photo(k, 5))
    save_rgb8(tmp_path / "b.png", photo(2, 5))
    images = Gallery()
    options = EvalOptions(metrics=find_metrics("noise_sigma", no_reference=True), pictures=True)
    result = with_pictures(evaluate_alone(tmp_path, options), images).run()
    assert [row.name for row in result.rows] == ["a.bmp", "a.png", "b"]
    assert len({one["restored"] for one in images.views.values()}) == 3


def test_a_suffix_in_a_name_may_make_it_equal_another(tmp_path: Path) -> None:
    for k, name in enumerate(("a.jpg.png", "a.png", "a.bmp")):
        save_rgb8(tmp_path / name, photo(k, 5))
    (tmp_path / "a.bmp").rename(tmp_path / "a.jpg")  # images are recognised by their first bytes
    options = EvalOptions(metrics=find_metrics("noise_sigma", no_reference=True))
    rows = evaluate_alone(tmp_path, options).run().rows
    assert sorted(row.name for row in rows) == ["a.jpg", "a.jpg.png", "a.png"]


def test_small_images_have_a_row_without_values(noisy: Path) -> None:
    save_rgb8(noisy / "tiny.png", photo(0, 0)[:8, :8].copy())
    result = run(noisy, "noise_sigma")
    without = [row.name for row in result.rows if math.isnan(row.more["noise_sigma"])]
    assert without == ["tiny"]
    assert document(result)["mean"]["noise_sigma"] is None


def test_invalid_requests_are_refused(noisy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in the folder"):
        run(tmp_path / "empty")
    with pytest.raises(DataError, match="no such file or folder"):
        run(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="--protocol cannot be combined with --no-reference"):
        run(noisy, protocol="rgb")
    for name in ("2", "10", "sub/a"):
        (noisy / f"{name}.png").write_text("text")
    with pytest.raises(DataError, match="3 of 3 images cannot be scored"):
        run(noisy)


def test_a_photograph_that_cannot_be_read_is_named_and_the_others_are_scored(noisy: Path) -> None:
    whole = run(noisy)
    (noisy / "10.png").write_text("text")
    result = run(noisy)
    assert [row.name for row in result.rows] == ["2", "sub/a"]
    assert [row.more for row in result.rows] == [whole.rows[0].more, whole.rows[2].more]
    facts = document(result)
    assert (facts["scored"], facts["expected"]) == (2, 3)
    [problem] = facts["missing"]["unreadable"]
    assert "10.png: cannot read the image" in problem
    assert result.failure is not None
    assert str(result.failure) == "scored 2 of 3: the set is incomplete"
    assert result.failure.details == (problem,)
    assert table_of(result)[2][0][0] == "mean (2 of 3)"


def test_metrics_without_and_with_targets_are_told_apart() -> None:
    assert list(find_metrics("all", no_reference=True)) == [
        "blur_effect",
        "noise_sigma",
        "total_variation",
    ]
    with pytest.raises(UsageError, match="--metrics vsi cannot be combined with --no-reference"):
        find_metrics("vsi", no_reference=True)
    with pytest.raises(UsageError, match="--metrics brisque needs --no-reference"):
        find_metrics("brisque")
    assert describe_metric("brisque").endswith("lower is better, 0 to about 100")
    assert "lower is sharper, 0 to 1" in describe_metric("blur_effect")


def test_weights_that_cannot_be_downloaded_are_an_error(
    noisy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(load_piq(), "brisque", offline)
    message = "weights of brisque cannot be loaded: no route to host"
    with pytest.raises(ResourceError, match=message):
        run(noisy, "brisque")


@pytest.mark.parametrize(
    ("package", "name"),
    [("skimage.measure", "blur_effect"), ("pywt", "noise_sigma")],
)
def test_missing_packages_are_an_error(
    noisy: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ResourceError, match=f"{name} needs scikit-image and PyWavelets") as error:
        run(noisy, name)
    assert error.value.hint == 'pip install "c2fdft[no-reference]"'
