"""eval: scores of files and of weights against targets, and their statistics."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from c2fdft_cli.data.images.picture import Picture, write_picture
from c2fdft_cli.engine.evaluate.files import evaluate_files
from c2fdft_cli.engine.evaluate.job import EvalOptions, EvalResult
from c2fdft_cli.engine.evaluate.metrics import describe_metric, find_metrics, lower_wins
from c2fdft_cli.engine.evaluate.options import WeightsOptions
from c2fdft_cli.engine.evaluate.rows import document, table_of, write_csv
from c2fdft_cli.engine.evaluate.weights import _mean, compare_weights, evaluate_weights
from c2fdft_cli.engine.sampling.scoring import Scored
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint, save_checkpoint
from c2fdft_cli.errors import CheckpointError, DataError, ResourceError, UsageError
from c2fdft_cli.execution import device
from c2fdft_cli.metrics.full_reference import METRICS, load_piq, without_download
from c2fdft_cli.metrics.protocols import PROTOCOLS, score
from tests.kit.evaluate import degraded, run, save
from tests.kit.formula import photo
from tests.kit.images import damage_pixels
from tests.kit.restore import overflow_in_half_precision
from tests.kit.weights import write_random

# -- scores ------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [name for name, p in PROTOCOLS.items() if not p.border])
def test_scores_equal_those_of_the_metrics(folders: tuple[Path, Path], protocol: str) -> None:
    result = run(*folders, protocol=protocol)
    for k, row in enumerate(result.rows):
        a, b = (torch.from_numpy(x).permute(2, 0, 1)[None] for x in (degraded(k), photo(k)))
        assert (row.psnr, row.ssim) == pytest.approx(
            tuple(vars(score(a, b, PROTOCOLS[protocol])[0]).values())
        )
    assert result.protocol.name == protocol


def test_a_protocol_s_border_counts_towards_the_smallest_size(folders: tuple[Path, Path]) -> None:
    with pytest.raises(DataError) as error:  # before the first image is scored
        evaluate_files(*folders, EvalOptions("levin"))
    assert "inside a border of 15 px" in str(error.value.details)


def test_the_default_protocol_is_rgb(folders: tuple[Path, Path]) -> None:
    assert run(*folders).protocol.name == "rgb"
    assert run(*folders).scored_on == "saved files, 8 bit"


def test_unrounded_protocols_score_all_16_bits(tmp_path: Path) -> None:
    deep = photo(0).astype(np.uint16) * 257 + 60
    (tmp_path / "out").mkdir()
    write_picture(tmp_path / "out" / "0.png", Picture(deep))
    save(tmp_path / "target" / "0.png", photo(0))
    exact = run(tmp_path / "out", tmp_path / "target", protocol="denoise").rows[0]
    assert exact.psnr == pytest.approx(20 * math.log10(255 / (60 / 257)))
    rounded = run(tmp_path / "out", tmp_path / "target", protocol="rgb").rows[0]
    assert rounded.psnr == math.inf


def test_a_border_is_not_scored(folders: tuple[Path, Path]) -> None:
    a, b = (torch.from_numpy(x).permute(2, 0, 1)[None] for x in (degraded(0), photo(0)))
    want = score(a, b, PROTOCOLS["rgb"], border=4)[0]
    got = run(*folders, border=4).rows[0]
    assert (got.psnr, got.ssim) == pytest.approx((want.psnr, want.ssim))


def test_inputs_are_scored_beside_the_results(folders: tuple[Path, Path]) -> None:
    out, target = folders
    result = evaluate_files(out, target, EvalOptions(), degraded=out).run()
    for row in result.rows:
        assert row.degraded is not None
        assert (row.degraded.psnr, row.degraded.ssim) == (row.psnr, row.ssim)
    facts = document(result)
    assert facts["degraded"]["mean"] == facts["mean"]
    header, *rows = table_of(result)
    assert header[-2:] == ["input PSNR", "input SSIM"]
    assert all(row[3:] == row[1:3] for part in rows for row in part)
    (out.parent / "none").mkdir()
    with pytest.raises(DataError, match="no degraded image"):
        evaluate_files(out, target, EvalOptions(), degraded=out.parent / "none")


@pytest.mark.parametrize("other", [None, 20])
def test_inputs_that_are_missing_for_some_images_are_named_and_not_scored(
    folders: tuple[Path, Path], other: int | None
) -> None:
    out, target = folders
    beside = out.parent / "inputs"
    names = sorted(path.name for path in out.iterdir())
    for name in names[1:]:
        save(beside / name, degraded(0))
    if other is not None:  # it exists, but has another size
        save(beside / names[0], degraded(0)[:other])
    result = evaluate_files(out, target, EvalOptions(), degraded=beside).run()
    facts = document(result)
    assert facts["degraded"] is None
    assert table_of(result)[0] == ["image", "PSNR", "SSIM"]
    what = f"1 of {len(names)} images have no input of the same size, such as {Path(names[0]).stem}"
    assert facts["notes"] == [f"note: the degraded inputs are not scored: {what}"]
    assert document(evaluate_files(out, target, EvalOptions()).run())["notes"] == []


def test_equal_images_have_an_infinite_psnr(folders: tuple[Path, Path]) -> None:
    _, target = folders
    result = run(target, target)
    assert result.rows[0].psnr == math.inf
    facts = document(result)
    assert facts["mean"] == {"psnr": None, "ssim": pytest.approx(1.0)}
    assert facts["images"][0] == {"name": "9", "psnr": None, "ssim": pytest.approx(1.0)}
    json.dumps(facts, allow_nan=False)
    assert table_of(result)[2][-3][1] == "inf"


def test_of_many_images_the_table_lists_the_worst(folders: tuple[Path, Path]) -> None:
    result = run(*folders)
    rows = [Scored(f"set{k}/{k}", float(k), 0.5, {"gmsd": k / 1000}) for k in range(201)]
    _, images, statistics = table_of(replace(result, rows=rows[:200]))
    assert (len(images), len(statistics)) == (200, 200 + 3)
    columns, images, statistics = table_of(replace(result, rows=rows))
    assert [row[:2] for row in images] == [[f"set{k}/{k}", f"{k}.00"] for k in range(20)]
    assert [row[0] for row in statistics] == ["mean", "median", "std"]
    assert (columns, statistics[0]) == (
        ["image", "PSNR", "SSIM", "GMSD"],
        ["mean", "100.00", "0.5000", "0.1000"],
    )
    rows[77] = replace(rows[77], psnr=math.nan)
    assert table_of(replace(result, rows=rows))[1][0][:2] == ["set77/77", "-"]
    facts = document(replace(result, rows=rows))
    assert (len(facts["images"]), len(facts["sets"])) == (201, 201)
    _, images, _ = table_of(replace(result, rows=rows, has_targets=False))
    assert [row[0] for row in images[:2]] == ["set200/200", "set199/199"]  # a lower GMSD is better


def test_the_pairs_whose_headers_were_read_are_counted(folders: tuple[Path, Path]) -> None:
    seen: list[tuple[str, int, int]] = []
    evaluate_files(*folders, EvalOptions(looked=lambda *count: seen.append(count)))
    assert seen == [("reading headers", done, 3) for done in range(3)]


# -- images not scored -------------------------------------------------------------


def test_sizes_that_differ_are_all_listed(folders: tuple[Path, Path]) -> None:
    out, target = folders
    save(target / "9.png", photo(0, 24, 31))
    says = r"out.9\.png: the sizes differ within a pair: 30 x 24 px, but .*9\.png is 31 x 24 px"
    with pytest.raises(DataError, match=says):
        run(out, target)
    save(target / "10.png", photo(0, 23, 30))
    with pytest.raises(DataError, match="2 of 3 pairs cannot be scored") as error:
        run(out, target)
    assert len(error.value.details) == 2


def test_unreadable_files_are_named(folders: tuple[Path, Path]) -> None:
    out, target = folders
    (out / "9.png").write_text("not an image")
    with pytest.raises(DataError, match=r"^[^:]*9\.png: cannot read the image"):
        run(out, target)


def test_pairs_with_damaged_pixels_are_named_and_the_others_scored(
    folders: tuple[Path, Path],
) -> None:
    out, target = folders
    whole = run(out, target).rows
    damage_pixels(out / "9.png")
    result = run(out, target)
    assert result.rows == whole[1:]
    [problem] = result.unreadable
    assert problem.startswith(f"{out / '9.png'}: cannot read the image")
    assert result.failure is not None
    assert str(result.failure) == "scored 2 of 3: the set is incomplete"
    assert result.failure.details == (problem,)
    for name in ("10.png", "11.png"):
        damage_pixels(out / name)
    with pytest.raises(DataError, match="3 of 3 images cannot be scored"):
        run(out, target)


def test_float_files_with_nan_are_refused(folders: tuple[Path, Path]) -> None:
    cv2 = pytest.importorskip("cv2")
    out, target = folders
    values = np.full((24, 30, 3), 0.5, np.float32)
    values[0, 0, 0] = np.nan
    cv2.imwrite(str(out / "9.tiff"), values)
    with pytest.raises(DataError, match="cannot read the image"):
        run(out / "9.tiff", target / "9.png")


@pytest.mark.parametrize(("size", "border"), [((10, 40), 0), ((24, 30), 7), ((24, 30), 12)])
def test_images_smaller_than_the_window_of_ssim(
    tmp_path: Path, size: tuple[int, int], border: int
) -> None:
    a, b = (save(tmp_path / name, photo(0, *size)) for name in ("a.png", "b.png"))
    with pytest.raises(DataError, match="SSIM needs 11 x 11"):
        evaluate_files(a, b, EvalOptions(border=border))  # before the first image is scored


@pytest.mark.parametrize("options", [EvalOptions(border=20), EvalOptions("levin", border=5)])
def test_shards_are_checked_before_the_first_image_is_restored(
    options: EvalOptions, shard_folder: Path, tmp_path: Path
) -> None:
    weights = write_random(tmp_path / "fine.pt", stage="fine", grid=[999], data=shard_folder)
    runs = WeightsOptions(device="cpu", precision="fp32")
    with pytest.raises(DataError, match="2 of 2 images cannot be scored"):
        evaluate_weights(weights, runs, options)


def test_the_headers_of_degraded_images_are_read_first(folders: tuple[Path, Path]) -> None:
    other = shutil.copytree(folders[0], folders[0].parent / "degraded")
    (other / "10.png").write_text("text")
    with pytest.raises(DataError, match=r"degraded/10\.png: cannot read the image"):
        evaluate_files(*folders, EvalOptions(), other)


def test_invalid_options_are_refused() -> None:
    with pytest.raises(UsageError, match="--protocol must be"):
        EvalOptions("best")
    with pytest.raises(UsageError, match="--border must be at least 0, got -1"):
        EvalOptions(border=-1)
    assert type(EvalOptions(border=np.int64(4)).border) is int  # it is written to JSON
    with pytest.raises(UsageError, match="--metrics niqe: no such metric"):
        find_metrics("gmsd,niqe")


# -- weights -----------------------------------------------------------------------


@pytest.fixture
def weights(shard_folder: Path, tmp_path: Path) -> Path:
    said = {"stage": "fine", "grid": [999, 500]}
    return write_random(tmp_path / "fine.pt", protocol="derain", data=shard_folder, **said)


def of_weights(
    path: Path, protocol: str | None = None, data: Path | None = None, **options: Any
) -> EvalResult:
    runs = WeightsOptions(device="cpu", **{"precision": "fp32", **options})
    return evaluate_weights(path, runs, EvalOptions(protocol), data=data).run()


def test_weights_on_their_own_shards(weights: Path) -> None:
    result = of_weights(weights)
    assert result.protocol.name == "derain"
    assert len(result.rows) == 2
    assert result.notes == ["timesteps: 999, 500 (2 sampling steps)"]
    assert all(row.degraded is not None for row in result.rows)
    assert of_weights(weights, images=1).rows == result.rows[:1]
    assert of_weights(weights, protocol="denoise").scored_on == "network output, unrounded"


def test_images_restored_again_in_float32_are_reported(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cpu_has_fast_bf16", lambda: True)
    want = of_weights(weights, seeds=2)
    overflow_in_half_precision(monkeypatch)
    again = of_weights(weights, seeds=2, precision="bf16")
    assert again.rows == want.rows
    said = "not finite in bf16, restored again in fp32"
    assert [note for note in again.notes if "fp32" in note] == [
        f"note: {row.name.removeprefix('val/')}: {said}" for row in again.rows
    ]
    assert document(again)["notes"] == again.notes


def test_timesteps_other_than_the_trained_ones_are_noted(weights: Path) -> None:
    notes = of_weights(weights, grid=(999,), images=1).notes
    assert "trained at other timesteps: 999, 500" in notes[1]
    with pytest.raises(UsageError, match="--grid"):
        of_weights(weights, grid=(1, 2))


def test_two_checkpoints_are_compared_on_the_same_terms(
    weights: Path, shard_folder: Path, tmp_path: Path
) -> None:
    other = write_random(tmp_path / "b.pt", seed=1, stage="fine", grid=[999])  # names no data
    runs = WeightsOptions(device="cpu", precision="fp32")
    a, b = (job.run() for job in compare_weights(weights, other, runs, EvalOptions(pictures=True)))
    assert [row.name for row in a.rows] == [row.name for row in b.rows]
    assert a.protocol == b.protocol == PROTOCOLS["derain"]
    said = "note: scored with A's protocol, derain, not its own, rgb"
    assert b.notes == ["timesteps: 999 (1 sampling step)", said]
    assert said not in a.notes
    alone = of_weights(other, protocol="derain", data=shard_folder)
    assert b.rows == alone.rows
    jobs = compare_weights(weights, other, runs, EvalOptions("y"))
    assert not any("protocol" in note for job in jobs for note in job.run().notes)


def test_several_seeds_give_a_mean_and_a_deviation(weights: Path) -> None:
    both = of_weights(weights, seeds=2)
    one, two = (of_weights(weights, seed=seed) for seed in (0, 1))
    for i, row in enumerate(both.rows):
        assert row.psnr == pytest.approx((one.rows[i].psnr + two.rows[i].psnr) / 2)
        assert row.ssim == pytest.approx((one.rows[i].ssim + two.rows[i].ssim) / 2)
    assert both.spread is not None
    assert both.spread > 0
    assert one.spread is None
    exact = [replace(row, by_seed=(math.inf, 30.0)) for row in both.rows]
    assert replace(both, rows=exact).spread is None


def test_scores_notes_and_failures_are_those_of_all_seeds() -> None:
    subject: Any = SimpleNamespace(checkpoint=SimpleNamespace(path=Path("w.pt")))
    first = Scored("a", 20.0, 0.5, {"gmsd": 0.1}, notes=("one",))
    last = Scored("a", 30.0, 0.9, {"gmsd": 0.3}, notes=("two",))
    mean = _mean([first, last], subject)
    assert (mean.psnr, mean.ssim) == (25, pytest.approx(0.7))
    assert mean.more == {"gmsd": pytest.approx(0.2)}
    assert mean.notes == ("one", "two")
    with pytest.raises(CheckpointError, match="NaN or infinite values for image a"):
        _mean([replace(first, psnr=math.nan), last], subject)


def test_weights_without_data_are_refused(weights: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(weights)
    checkpoint.meta.data = None
    save_checkpoint(weights, checkpoint.params, checkpoint.ema, checkpoint.meta)
    with pytest.raises(DataError, match="does not name its data"):
        of_weights(weights)
    with pytest.raises(DataError, match="no such folder of shards"):
        of_weights(weights, data=tmp_path / "no")


def test_a_missing_folder_of_inputs_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        evaluate_files(*folders, EvalOptions(), degraded=tmp_path / "nowhere")


def test_a_folder_of_sets_gives_the_mean_of_each(tmp_path: Path) -> None:
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
    labels = [row[0] for row in table_of(result)[2]]
    assert labels == ["mean of Rain100L (1)", "mean of Test100 (2)", "mean", "median", "std"]
    one_set = run(tmp_path / "out" / "Test100", tmp_path / "sets" / "Test100")
    assert document(one_set)["sets"] == {}
    for folder in ("out", "sets/input", "sets/target"):
        save(tmp_path / folder / "beside.png", photo(0))
    result = run(tmp_path / "out", tmp_path / "sets")
    assert (len(result.rows), document(result)["sets"]) == (4, {})


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
    assert [row[0] for row in table_of(result)[2]] == ["mean (2 of 4)", "median", "std"]


# -- further metrics ---------------------------------------------------------------


def test_metrics_are_columns(folders: tuple[Path, Path]) -> None:
    result = run(*folders, metrics=find_metrics("gmsd, haarpsi,ms_ssim"))
    assert list(result.rows[0].more) == ["gmsd", "haarpsi", "ms_ssim"]
    facts = document(result)
    assert 0 < facts["mean"]["haarpsi"] <= 1
    assert facts["images"][0]["ms_ssim"] is None  # the image is smaller than the metric needs
    assert facts["mean"]["ms_ssim"] is None
    assert facts["notes"] == [
        "note: ms_ssim has no mean: 3 of 3 images have no value, such as 9 "
        "(it needs sides of at least 161 px without the border, and must be finite)"
    ]
    assert table_of(result)[0] == ["image", "PSNR", "SSIM", "GMSD", "HAARPSI", "MS_SSIM"]
    assert table_of(result)[1][0][-1] == "-"
    assert "lower is better" in describe_metric("gmsd")
    assert [lower_wins(name) for name in ("gmsd", "fsim", "psnr")] == [True, False, False]
    assert list(find_metrics("all")) == without_download(METRICS)


def test_weights_of_a_metric_that_cannot_be_downloaded(
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


def test_pixels_are_kept_only_for_a_report(folders: tuple[Path, Path]) -> None:
    for asked in (False, True):
        job = evaluate_files(*folders, EvalOptions(pictures=asked))
        assert [one.pictures is not None for one in job] == [asked] * 3
        assert all(row.pictures is None for row in job.result.rows)


def test_csv_has_a_row_per_image(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out, target = folders
    save(out / "9.png", photo(0))
    result = evaluate_files(out, target, EvalOptions("derain"), degraded=out).run()
    write_csv(tmp_path / "rows.csv", result, {})
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["9", "10", "11"]
    assert float(rows[0]["psnr"]) == math.inf
    assert float(rows[1]["ssim"]) == result.rows[1].ssim
    assert {row["protocol"] for row in rows} == {"derain"}
    assert "input_psnr" in rows[0]


def test_names_in_csv_are_never_formulas(tmp_path: Path) -> None:
    """A spreadsheet would compute them."""
    names = ("=1+1", "+1", "-1", "@a", "\ta", "1=1")
    for name in names:
        for folder in ("out", "target"):
            save(tmp_path / folder / f"{name}.png", photo(0))
    write_csv(tmp_path / "rows.csv", run(tmp_path / "out", tmp_path / "target"), {})
    with (tmp_path / "rows.csv").open() as file:
        found = {row["name"] for row in csv.DictReader(file)}
    assert found == {"'=1+1", "'+1", "'-1", "'@a", "'\ta", "1=1"}
