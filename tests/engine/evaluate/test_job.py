"""eval: pairing by name, scores against targets, statistics, comparison, report."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c2fdft_cli.data.images.picture import Picture, save_rgb8, write_picture
from c2fdft_cli.engine.evaluate.compare import (
    as_json,
    in_common,
    in_words,
    not_in_common,
    paired_comparison,
)
from c2fdft_cli.engine.evaluate.files import evaluate_files
from c2fdft_cli.engine.evaluate.job import EvalOptions, EvalResult
from c2fdft_cli.engine.evaluate.metrics import describe_metric, find_metrics
from c2fdft_cli.engine.evaluate.pairing import pair_files
from c2fdft_cli.engine.evaluate.report import (
    About,
    ReportImages,
    error_map,
    with_pictures,
    write_report,
)
from c2fdft_cli.engine.evaluate.rows import document, table_of, write_csv
from c2fdft_cli.engine.evaluate.weights import WeightsOptions, evaluate_weights
from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.engine.weights.checkpoint import Meta, load_checkpoint, save_checkpoint
from c2fdft_cli.errors import DataError, ResourceError, UsageError
from c2fdft_cli.metrics.full_reference import FULL_SET, load_piq
from c2fdft_cli.metrics.protocols import PROTOCOLS, score
from c2fdft_cli.recipe.schema import Network, Recipe
from tests.kit.formula import photo
from tests.kit.restore import overflow_in_half_precision

NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NETWORK = Network(dim=8, blocks=[1, 1, 1, 1], heads=[1, 2, 4, 8])


def degraded(k: int, strength: int = 20) -> np.ndarray[Any, Any]:
    return np.minimum(photo(k).astype(int) + strength * (1 + k), 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray[Any, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_rgb8(path, pixels)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for k in range(3):
        save(tmp_path / "out" / f"{k + 9}.png", degraded(k))
        save(tmp_path / "target" / f"{k + 9}.png", photo(k))
    return tmp_path / "out", tmp_path / "target"


def run(restored: Path, target: Path, **options: Any) -> EvalResult:
    return evaluate_files(restored, target, EvalOptions(**options)).run()


def names_of(restored: Path, target: Path) -> dict[str, str]:
    found = pair_files(restored, target)
    root = target if target.is_dir() else target.parent
    return {pair.name: pair.gt.relative_to(root).as_posix() for pair in found.pairs}


# -- pairing -----------------------------------------------------------------------


def test_same_names(folders: tuple[Path, Path]) -> None:
    assert names_of(*folders) == {"9": "9.png", "10": "10.png", "11": "11.png"}
    assert [pair.name for pair in pair_files(*folders).pairs] == ["9", "10", "11"]


def test_position_never_counts(tmp_path: Path) -> None:
    for name in ("b", "c"):
        save(tmp_path / "out" / f"{name}.png", photo(0))
    for name in ("a", "b"):
        save(tmp_path / "target" / f"{name}.png", photo(0))
    found = pair_files(tmp_path / "out", tmp_path / "target")
    assert [(pair.lq.name, pair.gt.name) for pair in found.pairs] == [("b.png", "b.png")]
    assert [path.name for path in found.without_target] == ["c.png"]
    assert [path.name for path in found.without_restored] == ["a.png"]


def test_rain_against_norain_in_a_folder_with_other_files(tmp_path: Path) -> None:
    for k in (1, 2):
        save(tmp_path / "out" / f"rain-00{k}.png", photo(k))
        save(tmp_path / "set" / f"norain-00{k}.png", photo(k))
    save(tmp_path / "set" / "poster.png", photo(5))
    (tmp_path / "set" / "notes.txt").write_text("x")
    want = {"rain-001": "norain-001.png", "rain-002": "norain-002.png"}
    assert names_of(tmp_path / "out", tmp_path / "set") == want


def test_a_set_with_its_rainy_folder_stands_for_its_clean_side(tmp_path: Path) -> None:
    for k in (1, 2):
        save(tmp_path / "out" / f"rain-00{k}.jpg", photo(k))
        save(tmp_path / "set" / f"norain-00{k}.png", photo(k))
        save(tmp_path / "set" / "rainy" / f"rain-00{k}.png", degraded(k))
    want = {"rain-001": "norain-001.png", "rain-002": "norain-002.png"}
    assert names_of(tmp_path / "out", tmp_path / "set") == want
    found = pair_files(tmp_path / "out", tmp_path / "set")
    inputs = {restored.name: degraded.name for restored, degraded in found.degraded.items()}
    assert inputs == {"rain-001.jpg": "rain-001.png", "rain-002.jpg": "rain-002.png"}
    # the untouched inputs themselves, which lie inside the target folder
    assert names_of(tmp_path / "set" / "rainy", tmp_path / "set") == want


@pytest.mark.parametrize("side", ["", "target"])
def test_input_and_target_folders(tmp_path: Path, side: str) -> None:
    for k in (1, 12):
        save(tmp_path / "out" / f"{k}.png", photo(k))
        save(tmp_path / "set" / "input" / f"{k}.png", degraded(k))
        save(tmp_path / "set" / "target" / f"{k}.png", photo(k))
    found = names_of(tmp_path / "out", tmp_path / "set" / side)
    assert {name: Path(target).name for name, target in found.items()} == {
        "1": "1.png",
        "12": "12.png",
    }
    assert not any("input" in target for target in found.values())


def test_many_inputs_of_one_target(tmp_path: Path) -> None:
    for k in (1, 2):
        save(tmp_path / "out" / f"901_{k}.png", photo(0))
        save(tmp_path / "set" / "rainy_image" / f"901_{k}.jpg", photo(0))
    save(tmp_path / "set" / "ground_truth" / "901.jpg", photo(0))
    for target in (tmp_path / "set", tmp_path / "set" / "ground_truth"):
        assert len(names_of(tmp_path / "out", target)) == 2


@pytest.mark.parametrize("restored", ["{seq}/00.png", "{seq}/blur/00.png"])
def test_sequences_with_the_same_file_names(tmp_path: Path, restored: str) -> None:
    for k, seq in enumerate(("A", "B")):
        save(tmp_path / "out" / restored.format(seq=seq), photo(k))
        save(tmp_path / "set" / seq / "blur" / "00.png", degraded(k))
        save(tmp_path / "set" / seq / "sharp" / "00.png", photo(k))
    found = names_of(tmp_path / "out", tmp_path / "set")
    assert sorted(found.values()) == ["A/sharp/00.png", "B/sharp/00.png"]
    assert all(row.psnr == math.inf for row in run(tmp_path / "out", tmp_path / "set").rows)


def test_results_that_differ_by_their_suffix_alone_are_compared_with_their_own(
    tmp_path: Path,
) -> None:
    for side, more in (("a", 0), ("b", 3)):
        for k, suffix in ((0, ".png"), (1, ".bmp")):
            save(tmp_path / side / f"0{suffix}", degraded(0, 10 + 10 * k + more))
    save(tmp_path / "target" / "0.png", photo(0))
    a, b = (run(tmp_path / side, tmp_path / "target") for side in "ab")
    assert [row.name for row in a.rows] == ["0.bmp", "0.png"]
    found = paired_comparison(a, b)["psnr"]
    assert found is not None
    assert found.mean == pytest.approx(a.psnr - b.psnr)
    sides = [tmp_path / side for side in ("a", "target", "b")]
    beside = evaluate_files(*sides[:2], EvalOptions(), sides[2]).run()
    assert [row.degraded and row.degraded.psnr for row in beside.rows] == [
        row.psnr for row in b.rows
    ]


def test_results_inside_the_target_folder(folders: tuple[Path, Path]) -> None:
    _, target = folders
    for k in range(3):
        save(target / "mine" / f"{k + 9}.png", degraded(k))
    assert names_of(target / "mine", target) == {"9": "9.png", "10": "10.png", "11": "11.png"}
    assert run(target / "mine", target).rows[0].psnr < math.inf


def test_two_files_and_a_file_in_a_folder(folders: tuple[Path, Path]) -> None:
    out, target = folders
    assert run(out / "9.png", target / "10.png").rows[0].name == "9"
    assert names_of(out / "10.png", target) == {"10": "10.png"}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "no such file or folder"),
        ("empty", "no images in the folder"),
        ("other names", "no restored image has a target of a matching name"),
    ],
)
def test_nothing_to_pair(folders: tuple[Path, Path], case: str, message: str) -> None:
    out, _ = folders
    target = out.parent / "other"
    if case != "missing":
        target.mkdir()
    if case == "other names":
        save(target / "x.png", photo(0))
    with pytest.raises(DataError, match=message) as error:
        run(out, target)
    assert error.value.exit_code == 3
    with pytest.raises(DataError):
        run(target, out)


# -- scores ------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [name for name, p in PROTOCOLS.items() if not p.border])
def test_scores_are_those_of_the_core(folders: tuple[Path, Path], protocol: str) -> None:
    result = run(*folders, protocol=protocol)
    for k, row in enumerate(result.rows):
        a, b = (torch.from_numpy(x).permute(2, 0, 1)[None] for x in (degraded(k), photo(k)))
        assert (row.psnr, row.ssim) == pytest.approx(
            tuple(vars(score(a, b, PROTOCOLS[protocol])[0]).values())
        )
    assert result.protocol.name == protocol


def test_a_protocol_s_border_counts_towards_the_smallest_size(folders: tuple[Path, Path]) -> None:
    with pytest.raises(DataError) as error:
        run(*folders, protocol="levin")
    assert "inside a border of 15 px" in str(error.value.details)


def test_the_default_protocol_is_rgb(folders: tuple[Path, Path]) -> None:
    assert run(*folders).protocol.name == "rgb"
    assert run(*folders).scored_on == "saved files, 8 bit"


def test_sixteen_bits_count_where_the_protocol_is_unrounded(tmp_path: Path) -> None:
    deep = photo(0).astype(np.uint16) * 257 + 60
    (tmp_path / "out").mkdir()
    write_picture(tmp_path / "out" / "0.png", Picture(deep))
    save(tmp_path / "target" / "0.png", photo(0))
    exact = run(tmp_path / "out", tmp_path / "target", protocol="denoise").rows[0]
    assert exact.psnr == pytest.approx(20 * math.log10(255 / (60 / 257)))
    rounded = run(tmp_path / "out", tmp_path / "target", protocol="rgb").rows[0]
    assert rounded.psnr == math.inf


def test_border(folders: tuple[Path, Path]) -> None:
    a, b = (torch.from_numpy(x).permute(2, 0, 1)[None] for x in (degraded(0), photo(0)))
    want = score(a, b, PROTOCOLS["rgb"], border=4)[0]
    got = run(*folders, border=4).rows[0]
    assert (got.psnr, got.ssim) == pytest.approx((want.psnr, want.ssim))


def test_inputs_beside(folders: tuple[Path, Path]) -> None:
    out, target = folders
    result = evaluate_files(out, target, EvalOptions(), degraded=out).run()
    for row in result.rows:
        assert row.degraded is not None
        assert (row.degraded.psnr, row.degraded.ssim) == (row.psnr, row.ssim)
    facts = document(result)
    assert facts["degraded"]["mean"] == facts["mean"]
    (out.parent / "none").mkdir()
    with pytest.raises(DataError, match="no degraded image"):
        evaluate_files(out, target, EvalOptions(), degraded=out.parent / "none")


@pytest.mark.parametrize("other", [None, 20])
def test_inputs_of_some_alone_are_not_scored_and_named(
    folders: tuple[Path, Path], other: int | None
) -> None:
    out, target = folders
    beside = out.parent / "inputs"
    names = sorted(path.name for path in out.iterdir())
    for name in names[1:]:
        save(beside / name, degraded(0))
    if other is not None:  # there, but of another size
        save(beside / names[0], degraded(0)[:other])
    result = evaluate_files(out, target, EvalOptions(), degraded=beside).run()
    facts = document(result)
    assert facts["degraded"] is None
    what = f"1 of {len(names)} images have none of their size, as {Path(names[0]).stem}"
    assert facts["notes"] == [f"note: the degraded inputs are not scored: {what}"]
    assert document(evaluate_files(out, target, EvalOptions()).run())["notes"] == []


def test_equal_images(folders: tuple[Path, Path]) -> None:
    _, target = folders
    result = run(target, target)
    assert result.rows[0].psnr == math.inf
    facts = document(result)
    assert facts["mean"] == {"psnr": None, "ssim": pytest.approx(1.0)}
    assert facts["images"][0] == {"name": "9", "psnr": None, "ssim": pytest.approx(1.0)}
    json.dumps(facts, allow_nan=False)
    assert table_of(result)[1][-3][1] == "inf"


# -- what cannot be scored ---------------------------------------------------------


def test_sizes_that_differ_are_all_listed(folders: tuple[Path, Path]) -> None:
    out, target = folders
    save(target / "9.png", photo(0, 24, 31))
    with pytest.raises(DataError, match="9: sizes differ, restored 30 x 24, target 31 x 24"):
        run(out, target)
    save(target / "10.png", photo(0, 23, 30))
    with pytest.raises(DataError, match="2 of 3 pairs cannot be scored") as error:
        run(out, target)
    assert len(error.value.details) == 2


def test_unreadable_files(folders: tuple[Path, Path]) -> None:
    out, target = folders
    (out / "9.png").write_text("not an image")
    with pytest.raises(DataError, match=r"^[^:]*9\.png: cannot read the image"):
        run(out, target)
    # a whole header before damaged pixels: found out only when it is read
    data = (target / "10.png").read_bytes()
    (out / "9.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"^[^:]*9\.png: cannot read the image"):
        run(out, target)


def test_float_files_with_nan(folders: tuple[Path, Path]) -> None:
    cv2 = pytest.importorskip("cv2")
    out, target = folders
    values = np.full((24, 30, 3), 0.5, np.float32)
    values[0, 0, 0] = np.nan
    cv2.imwrite(str(out / "9.tiff"), values)
    with pytest.raises(DataError, match="cannot read the image"):
        run(out / "9.tiff", target / "9.png")


@pytest.mark.parametrize(("size", "border"), [((10, 40), 0), ((24, 30), 7), ((24, 30), 12)])
def test_images_below_the_window_of_ssim(
    tmp_path: Path, size: tuple[int, int], border: int
) -> None:
    a, b = (save(tmp_path / name, photo(0, *size)) for name in ("a.png", "b.png"))
    with pytest.raises(DataError, match="SSIM needs 11 x 11"):
        run(a, b, border=border)


def test_options_that_are_none() -> None:
    with pytest.raises(UsageError, match="--protocol must be"):
        EvalOptions("best")
    with pytest.raises(UsageError, match="--border must be at least 0, got -1"):
        EvalOptions(border=-1)
    assert type(EvalOptions(border=np.int64(4)).border) is int  # it goes into a JSON document
    with pytest.raises(UsageError, match="--metrics niqe: no such metric"):
        find_metrics("gmsd,niqe")


# -- weights -----------------------------------------------------------------------


@pytest.fixture
def weights(shard_folder: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    state = make_network(NETWORK).state_dict()
    recipe = Recipe(network=NETWORK)
    recipe.train.protocol = "derain"
    meta = Meta(
        NETWORK, stage="fine", grid=[999, 500], recipe=recipe.to_dict(), data=str(shard_folder)
    )
    save_checkpoint(tmp_path / "fine.pt", state, state, meta)
    return tmp_path / "fine.pt"


def of_weights(path: Path, protocol: str | None = None, **options: Any) -> EvalResult:
    wish = WeightsOptions(path, device="cpu", **{"precision": "fp32", **options})
    return evaluate_weights(wish, EvalOptions(protocol)).run()


def test_weights_on_their_own_shards(weights: Path) -> None:
    result = of_weights(weights)
    assert result.protocol.name == "derain"
    assert len(result.rows) == 2
    assert result.notes == ["timesteps: 999, 500 (2 sampling steps)"]
    assert all(row.degraded is not None for row in result.rows)
    assert of_weights(weights, images=1).rows == result.rows[:1]
    assert of_weights(weights, protocol="denoise").scored_on == "network output, unrounded"


def test_what_was_restored_again_in_float32_is_told(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = of_weights(weights, seeds=2)
    overflow_in_half_precision(monkeypatch)
    again = of_weights(weights, seeds=2, precision="bf16")
    assert again.rows == want.rows
    said = "not finite in bf16, restored again in fp32"
    assert [note for note in again.notes if "fp32" in note] == [
        f"note: {row.name.removeprefix('val/')}: {said}" for row in again.rows
    ]
    assert document(again)["notes"] == again.notes


def test_another_grid_than_the_trained_one_is_remarked(weights: Path) -> None:
    notes = of_weights(weights, timesteps=(999,), images=1).notes
    assert "trained at other timesteps: 999, 500" in notes[1]
    with pytest.raises(UsageError, match="--grid"):
        of_weights(weights, timesteps=(1, 2))


def test_seeds_average_and_spread(weights: Path) -> None:
    both = of_weights(weights, seeds=2)
    one, two = (of_weights(weights, seed=seed) for seed in (0, 1))
    for i, row in enumerate(both.rows):
        assert row.psnr == pytest.approx((one.rows[i].psnr + two.rows[i].psnr) / 2)
    assert both.spread is not None
    assert both.spread > 0
    assert one.spread is None
    exact = [replace(row, by_seed=(math.inf, 30.0)) for row in both.rows]
    assert replace(both, rows=exact).spread is None


def test_weights_without_data(weights: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(weights)
    checkpoint.meta.data = None
    save_checkpoint(weights, checkpoint.params, checkpoint.ema, checkpoint.meta)
    with pytest.raises(DataError, match="names no data"):
        of_weights(weights)
    with pytest.raises(DataError, match="no such folder of shards"):
        of_weights(weights, data=tmp_path / "no")


def test_a_folder_of_inputs_that_is_not_there(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        evaluate_files(*folders, EvalOptions(), degraded=tmp_path / "nowhere")


# -- comparisons ------------------------------------------------------------------


def test_against_pairs_by_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out, target = folders
    for k in (1, 2):
        save(tmp_path / "b" / f"{k + 9}.png", degraded(k, 40))
    a, b = run(out, target), run(tmp_path / "b", target)
    comparison = paired_comparison(a, b)
    assert comparison["psnr"] is not None
    assert (comparison["psnr"].wins, comparison["psnr"].images) == (2, 2)
    assert not_in_common(a, b) == ["9"]
    assert as_json(comparison, b)["difference"]["psnr"]["mean"] > 0
    assert in_words(comparison)[0].startswith("PSNR: A - B = +")
    one = run(save(tmp_path / "c" / "9.png", degraded(0, 9)), target / "9.png")
    assert (
        "(one image: no interval), A wins 0, B 0, ties 1"
        in in_words(paired_comparison(one, one))[0]
    )
    equal = paired_comparison(run(target, target), run(target, target))
    assert equal["psnr"] is None
    assert "no finite difference" in in_words(equal)[0]
    assert as_json(equal, run(target, target))["mean"]["psnr"] is None
    x, y = (save(tmp_path / name / f"{name}.png", photo(0)) for name in "xy")
    other = run(x, y)
    with pytest.raises(DataError, match="no image in common"):
        paired_comparison(a, other)


def test_against_pairs_by_target_where_names_differ(
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
    assert not_in_common(a, b) == []


def test_against_tells_variants_of_one_target_apart_by_their_inputs(tmp_path: Path) -> None:
    for k in (1, 2):
        save(tmp_path / "a" / f"901_{k}.png", degraded(k))
        save(tmp_path / "b" / f"901_{k}_out.png", degraded(k, 40))
        save(tmp_path / "set" / "rainy_image" / f"901_{k}.jpg", degraded(k))
    save(tmp_path / "set" / "ground_truth" / "901.jpg", photo(0))
    a, b = (run(tmp_path / side, tmp_path / "set") for side in "ab")
    assert not_in_common(a, b) == []
    a, b = (run(tmp_path / side, tmp_path / "set" / "ground_truth") for side in "ab")
    with pytest.raises(DataError, match="no image in common"):  # the target alone does not tell
        paired_comparison(a, b)


def test_a_folder_of_sets_has_their_means(tmp_path: Path) -> None:
    for name, count in (("Rain100L", 1), ("Test100", 2)):
        for k in range(count):
            save(tmp_path / "out" / name / f"{k}.png", degraded(k))
            save(tmp_path / "sets" / name / "input" / f"{k}.png", degraded(k))
            save(tmp_path / "sets" / name / "target" / f"{k}.png", photo(k))
    result = run(tmp_path / "out", tmp_path / "sets")
    facts = document(result)
    assert {name: one["images"] for name, one in facts["sets"].items()} == {
        "Rain100L": 1,
        "Test100": 2,
    }
    assert facts["sets"]["Rain100L"]["mean"]["psnr"] == facts["images"][0]["psnr"]
    mean = sum(row["psnr"] for row in facts["images"][1:]) / 2
    assert facts["sets"]["Test100"]["mean"]["psnr"] == pytest.approx(mean)
    labels = [row[0] for row in table_of(result)[1]]
    assert labels[-5:] == ["mean of Rain100L (1)", "mean of Test100 (2)", "mean", "median", "std"]
    one_set = run(tmp_path / "out" / "Test100", tmp_path / "sets" / "Test100")
    assert document(one_set)["sets"] == {}


def test_accents_composed_or_not(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "Füße") for form in ("NFC", "NFD"))
    save(tmp_path / "out" / f"{nfd}.png", degraded(0))
    save(tmp_path / "b" / f"{nfc}.png", degraded(0, 40))
    save(tmp_path / "target" / f"{nfc}.png", photo(0))
    a, b = run(tmp_path / "out", tmp_path / "target"), run(tmp_path / "b", tmp_path / "target")
    assert [row.name for row in a.rows] == [nfd]
    assert len(in_common(a, b)) == 1


def test_an_incomplete_set_is_a_failure(folders: tuple[Path, Path]) -> None:
    assert run(*folders).failure is None
    (folders[0] / "9.png").unlink()
    save(folders[0] / "x.png", photo(0))
    result = run(*folders)
    assert result.failure is not None
    assert result.failure.exit_code == 6
    assert str(result.failure) == "scored 2 of 4: the set is incomplete"
    facts = document(result)
    assert (facts["scored"], facts["expected"]) == (2, 4)
    assert table_of(result)[1][-3][0] == "mean (2 of 4)"


# -- further metrics ---------------------------------------------------------------


def test_metrics_are_columns(folders: tuple[Path, Path]) -> None:
    result = run(*folders, metrics=find_metrics("gmsd, haarpsi,ms_ssim"))
    assert list(result.rows[0].more) == ["gmsd", "haarpsi", "ms_ssim"]
    facts = document(result)
    assert 0 < facts["mean"]["haarpsi"] <= 1
    assert facts["images"][0]["ms_ssim"] is None  # smaller than it needs
    assert facts["mean"]["ms_ssim"] is None
    assert table_of(result)[0] == ["image", "PSNR", "SSIM", "GMSD", "HAARPSI", "MS_SSIM"]
    assert table_of(result)[1][0][-1] == "-"
    assert "lower is better" in describe_metric("gmsd")
    assert tuple(find_metrics("all")) == FULL_SET


def test_weights_of_a_metric_that_cannot_be_had(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline() -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(load_piq(), "LPIPS", offline)
    out = folders[0].parent
    a, b = (
        save(out / name, np.tile(image, (2, 2, 1)))
        for name, image in (("a.png", degraded(0)), ("b.png", photo(0)))
    )
    with pytest.raises(ResourceError, match="weights of lpips cannot be loaded: no route to host"):
        run(a, b, metrics=find_metrics("lpips"))


# -- files -------------------------------------------------------------------------


def test_pixels_are_kept_for_a_report_alone(folders: tuple[Path, Path]) -> None:
    for asked in (False, True):
        job = evaluate_files(*folders, EvalOptions(pictures=asked))
        assert [one.pictures is not None for one in job] == [asked] * 3
        assert all(row.pictures is None for row in job.result.rows)


def test_csv(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out, target = folders
    save(out / "9.png", photo(0))
    result = evaluate_files(out, target, EvalOptions("derain"), degraded=out).run()
    write_csv(tmp_path / "rows.csv", result)
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["9", "10", "11"]
    assert float(rows[0]["psnr"]) == math.inf
    assert float(rows[1]["ssim"]) == result.rows[1].ssim
    assert {row["protocol"] for row in rows} == {"derain"}
    assert "input_psnr" in rows[0]


def report_of(out: Path, target: Path, folder: Path) -> str:
    pictures = ReportImages()
    job = evaluate_files(out, target, EvalOptions(pictures=True), degraded=out)
    result = with_pictures(job, pictures).run()
    recipe = {"task": "</script><b>", "data": {"synthesis": {"sigma": [5, math.nan]}}}
    about = About("c2fdft eval <a> & b", ["protocol rgb"], recipe)
    write_report(folder, document(result), pictures, about)
    return (folder / "index.html").read_text()


def test_report_stands_alone(folders: tuple[Path, Path], tmp_path: Path) -> None:
    page = report_of(*folders, tmp_path / "report")
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert "default-src 'none'" in page
    text = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert text is not None
    data = json.loads(text[1])
    assert data["about"]["command"] == "c2fdft eval <a> & b"
    # numbers that JSON has not may stand in a stranger's file
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
def test_report_in_a_browser(folders: tuple[Path, Path], tmp_path: Path) -> None:
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


def test_error_map_is_black_to_white() -> None:
    target = np.zeros((1, 4, 3), np.uint8)
    restored = np.array([[0, 16, 32, 255]], np.uint8)[..., None].repeat(3, 2)
    got = error_map(restored, target)
    assert got[0].tolist() == [[0, 0, 0], [255, 0, 0], [255, 255, 0], [255, 255, 255]]
