"""Restoring folders: order, batches and interruptions change nothing, and errors are reported."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import c2fdft_cli as c2fdft
from c2fdft_cli.core.network import DFT
from c2fdft_cli.data.images import picture as pictures
from c2fdft_cli.data.images.picture import list_images, read_picture
from c2fdft_cli.engine.restore import pictures as restore_pictures
from c2fdft_cli.engine.restore import plan as restore_plan
from c2fdft_cli.engine.restore.job import restore
from c2fdft_cli.engine.restore.manifest import MANIFEST_NAME, Manifest, _own_name
from c2fdft_cli.engine.restore.options import Machine, SamplingOptions, Writing
from c2fdft_cli.engine.sampling.sampler import noise_generator
from c2fdft_cli.engine.sampling.subject import open_subject
from c2fdft_cli.errors import (
    CheckpointError,
    DataError,
    Interrupted,
    PartialFailure,
    ResourceError,
    UsageError,
)
from c2fdft_cli.execution import device
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.recipe.files import load_recipe
from tests.kit.gpu import pretend_gpu
from tests.kit.restore import (
    Request,
    found_under,
    overflow_in_half_precision,
    pixels,
    plan,
    random_picture,
    refuse_records,
    run,
    save,
    write_checkpoint,
)
from tests.kit.weights import write_random

GRID = (500, 100)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, tiny_net: Callable[..., DFT]) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("weights") / "w.pt", tiny_net()))


@pytest.fixture
def options(tmp_path: Path, weights: str) -> Request:
    """A request to restore six images of three sizes, one of them in a sub-folder."""
    sizes = [(16, 16), (16, 16), (9, 20), (16, 16), (1, 1)]
    for i, size in enumerate(sizes):
        save(tmp_path / "in" / f"{i}.png", random_picture(*size, seed=i))
    save(tmp_path / "in" / "sub" / "5.png", random_picture(16, 16, seed=5))
    return Request(str(tmp_path / "in"), str(tmp_path / "out"), weights, grid=GRID)


def contents(folder: Path) -> dict[str, np.ndarray]:
    return {path.relative_to(folder).as_posix(): pixels(path) for path in list_images(folder, True)}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Whether pixels differ by at most one level, in at most 0.1 % of the samples."""
    if a.keys() != b.keys():
        return False
    apart = [np.abs(a[name].astype(int) - b[name]).ravel() for name in a]
    every = np.concatenate(apart)
    return bool(every.max() <= 1 and (every > 0).mean() <= 1e-3)


def test_the_network_is_compiled_if_that_was_decided_for_the_work(
    options: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is the pixels that the network processes in all steps and samples."""
    asked, compiled = [], []

    def decide(setting: str, runtime: object, work: int) -> tuple[bool, str]:
        asked.append((setting, work))
        return True, "a notice"

    def strips(net: DFT, *, dtype: torch.dtype, compile: bool) -> StripNetwork:
        compiled.append(compile)
        return StripNetwork(net, dtype=dtype)

    monkeypatch.setattr(restore_plan, "compiles_strips", decide)
    monkeypatch.setattr(restore_plan, "StripNetwork", strips)
    made = plan(options, compile="on", samples=3)
    pixels = 4 * 16 * 16 + 9 * 20 + 1
    assert (asked, compiled) == ([("on", pixels * len(GRID) * 3)], [True])
    assert "a notice" in made.warnings


def test_every_image_gets_its_output(options: Request, tmp_path: Path) -> None:
    result = run(options)
    made = contents(tmp_path / "out")
    assert sorted(made) == ["0.png", "1.png", "2.png", "3.png", "4.png", "sub/5.png"]
    assert result.failure is None
    assert not result.skipped
    assert {record.error for record in result.images} == {None}
    record = next(r for r in result.images if r.source.endswith("2.png"))
    assert (record.height, record.width, record.calls, record.grid) == (9, 20, 2, list(GRID))
    assert (record.precision, record.executor) == ("fp32", "whole")
    assert record.peak_memory > 0


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_the_batch_changes_nothing(batch: int, options: Request, tmp_path: Path) -> None:
    run(options, out=str(tmp_path / "base"))
    run(options, batch=batch)
    assert same(contents(tmp_path / "out"), contents(tmp_path / "base"))


def test_images_of_8_and_16_bits_are_not_mixed(weights: str, tmp_path: Path) -> None:
    for depth in (8, 16):
        save(tmp_path / "in" / f"{depth}.png", random_picture(16, 16, depth=depth))
    run(Request(str(tmp_path / "in"), str(tmp_path / "out"), weights, batch=2), identity=True)
    assert same(contents(tmp_path / "out"), contents(tmp_path / "in"))


def test_an_image_restored_again_in_float32_is_noted(
    options: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cpu_has_fast_bf16", lambda: True)
    overflow_in_half_precision(monkeypatch)
    (image,) = run(options, source=f"{options.source}/4.png", precision="bf16").images
    assert any("not finite in bf16, restored again in fp32" in note for note in image.notes)


def test_an_image_alone_is_what_it_is_in_a_folder(options: Request, tmp_path: Path) -> None:
    run(options)
    run(options, source=f"{options.source}/3.png", out=str(tmp_path / "one.png"))
    alone = {"3.png": pixels(tmp_path / "one.png")}
    assert same(alone, {"3.png": pixels(tmp_path / "out" / "3.png")})


def test_noise_depends_only_on_seed_base_name_and_sample_number(
    options: Request, tmp_path: Path
) -> None:
    def drawn(seed: int, name: str, number: int = 0) -> float:
        return torch.randn(1, generator=noise_generator(seed, name, number)).item()

    assert drawn(0, "IMG.2024.01") != drawn(0, "IMG.2024.02")  # .01 is not a suffix
    assert len({drawn(0, "a"), drawn(1, "a"), drawn(0, "b"), drawn(0, "a", 1)}) == 4
    run(options)
    run(options, out=str(tmp_path / "other"), seed=1)
    assert not same(contents(tmp_path / "out"), contents(tmp_path / "other"))


def test_the_same_image_under_two_names_differs(options: Request, tmp_path: Path) -> None:
    picture = random_picture(16, 16, seed=0)
    save(tmp_path / "in" / "again.png", picture)
    run(options)
    made = contents(tmp_path / "out")
    assert not np.array_equal(made["0.png"], made["again.png"])


def test_ranks_share_a_folder(
    options: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(options, out=str(tmp_path / "base"))
    counts = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        counts.append(len(run(options).images))
    assert counts == [3, 3]
    assert same(contents(tmp_path / "out"), contents(tmp_path / "base"))


def test_eta_is_that_of_the_recipe_unless_another_is_requested(
    options: Request, tmp_path: Path
) -> None:
    """Also for `eval --weights` and `load`, so that all of them compute the same."""
    small = ["network.dim=8", "network.blocks=[1,1,1,1]", "sampling.eta=0.5"]
    recipe = load_recipe("tiny", small)
    weights = str(write_random(tmp_path / "eta.pt", recipe=recipe.to_dict()))
    one = {"source": f"{options.source}/0.png", "weights": weights}
    found = plan(options, **one).executor.sampler.eta
    subject = open_subject(Path(weights), protocol=None, device="cpu", precision="fp32")
    loaded = c2fdft.load(weights, device="cpu")._executor(1).sampler.eta
    assert (found, subject.executor([500], 0).sampler.eta, loaded) == (0.5, 0.5, 0.5)
    assert plan(options, **one, eta=0.0).executor.sampler.eta == 0.0


def test_a_second_run_skips_existing_outputs(options: Request, tmp_path: Path) -> None:
    run(options)
    stamps = {p: p.stat().st_mtime_ns for p in list_images(tmp_path / "out", True)}
    again = run(options)
    assert again.images == []
    assert len(again.skipped) == 6
    assert {one.doubt for one in again.skipped} == {None}
    assert stamps == {p: p.stat().st_mtime_ns for p in list_images(tmp_path / "out", True)}


def test_a_run_with_other_settings_names_the_difference_and_fails(
    options: Request, tmp_path: Path
) -> None:
    run(options)
    before = contents(tmp_path / "out")
    made = plan(options, seed=3, eta=0.5)
    (warning,) = made.warnings
    assert "6 files already exist, not overwritten; for each: made with other settings: " in warning
    assert "eta 0.0, now 0.5; seed 0, now 3" in warning
    result = restore(made).run()
    assert isinstance(result.failure, PartialFailure)
    assert "6 existing files may differ from what this command makes" in str(result.failure)
    assert not result.images
    assert same(contents(tmp_path / "out"), before)


OTHER_INPUT = "its input has changed since, or it was made from another one"
# settings that determine the pixels: another value gives another file
OTHER_SETTINGS = {
    "eta": 0.5, "seed": 3, "self_ensemble": True, "tile": 32, "quality": 90, "bit_depth": 8,
    "samples": 2, "grid": (500,), "precision": "bf16",
}  # fmt: skip


# settings that do not, or that are compared in another way
WITHOUT_EFFECT = {
    "weights", "task", "steps", "spacing",  # the digest of the weights, and the timesteps
    "temporal_noise", "crf",  # of videos only
    "device", "max_memory", "batch", "compile",
    "format", "suffix", "compare", "uncertainty", "overwrite",
}  # fmt: skip


def test_each_setting_is_known_to_change_the_pixels_or_not() -> None:
    """A new one that changes them must be in the records, or old outputs count as finished."""
    names = {one.name for kind in (SamplingOptions, Machine, Writing) for one in fields(kind)}
    assert names == set(OTHER_SETTINGS) | WITHOUT_EFFECT
    assert not set(OTHER_SETTINGS) & WITHOUT_EFFECT


def test_each_setting_that_determines_the_pixels_is_compared(
    options: Request, tmp_path: Path
) -> None:
    one = {"source": f"{options.source}/0.png", "format": "jpg"}
    run(options, **one)
    assert not plan(options, **one).warnings
    assert not plan(options, **one, temporal_noise="per-frame", crf=20).warnings  # of videos
    for name, value in OTHER_SETTINGS.items():
        *_, warning = plan(options, **one, **{name: value}).warnings  # the first may be on bf16
        word = {"grid": "timesteps"}.get(name, name.replace("_", " "))
        assert re.search(f"not overwritten: made with other settings: {word} .*, now ", warning)


def test_outputs_among_the_inputs_are_not_restored_again(options: Request) -> None:
    for restored, skipped in ((6, 0), (0, 6)):
        result = run(options, out=f"{options.source}/out")
        assert (len(result.images), len(result.skipped)) == (restored, skipped)


def test_inputs_and_outputs_may_be_a_thousand_folders_deep(
    options: Request, tmp_path: Path
) -> None:
    """Python itself allows about a thousand calls within each other."""
    deep = tmp_path / ("d/" * 1100)
    (tmp_path / "list.txt").write_text(f"{deep}/a.png\n{deep}/b.png\n")
    result = run(options, source=f"@{tmp_path}/list.txt")
    assert "2 of 2 images failed" in str(result.failure)
    with pytest.raises(DataError, match="no such file"):
        run(options, source=f"{deep}/a.png")


def test_other_weights_are_named(
    options: Request, tmp_path: Path, tiny_net: Callable[..., DFT]
) -> None:
    run(options)
    net = tiny_net()
    net.output.weight.data.mul_(2)
    other = write_checkpoint(tmp_path / "v.pt", net)
    (warning,) = plan(options, weights=str(other)).warnings
    assert re.search(r"weights w\.pt [0-9a-f]{8}, now v\.pt [0-9a-f]{8}$", warning)


def test_an_input_that_has_changed_is_named(options: Request, tmp_path: Path) -> None:
    run(options)
    save(tmp_path / "in" / "0.png", random_picture(16, 16, seed=77))
    (tmp_path / "out" / "4.png").unlink()
    again = run(options)
    assert [record.source.rsplit("/", 1)[1] for record in again.images] == ["4.png"]
    doubts = {Path(one.output).name: one.doubt for one in again.skipped}
    assert doubts.pop("0.png") == OTHER_INPUT
    assert set(doubts.values()) == {None}
    assert isinstance(again.failure, PartialFailure)


def test_files_without_a_record_are_named(options: Request, tmp_path: Path) -> None:
    run(options)
    (tmp_path / "out" / MANIFEST_NAME).unlink()
    again = run(options)
    assert {one.doubt for one in again.skipped} == {"there is no record of how it was made"}
    assert isinstance(again.failure, PartialFailure)


def test_the_manifest_records_how_each_file_was_made(options: Request, tmp_path: Path) -> None:
    run(options, seed=7, compare=tmp_path / "c", uncertainty=tmp_path / "u", samples=2)
    lines = (tmp_path / "out" / MANIFEST_NAME).read_text().splitlines()
    entries = {tmp_path / "out" / entry["output"]: entry for entry in map(json.loads, lines)}
    made = [path for name in ("out", "c", "u") for path in (tmp_path / name).rglob("*.png")]
    assert len(lines) == len(made) == 24
    assert entries.keys() == set(made)
    for path, entry in entries.items():
        assert entry["written"][:2] == [path.stat().st_size, path.stat().st_mtime_ns]
        made_with = entry["made_with"]
        assert (made_with["seed"], made_with["grid"]) == (7, list(GRID))
        assert (made_with["precision"], made_with["weights_file"]) == ("fp32", "w.pt")
        assert len(made_with["weights"]) == 64


def test_a_missing_comparison_does_not_make_an_old_output_count_as_new(
    options: Request, tmp_path: Path
) -> None:
    run(options)
    result = run(options, seed=1, compare=tmp_path / "c")
    assert len(result.skipped) == 6
    assert not (tmp_path / "c").exists()
    assert {one.doubt for one in run(options).skipped} == {None}


def test_a_comparison_that_was_made_with_other_settings_is_named(
    options: Request, tmp_path: Path
) -> None:
    extra = {"compare": tmp_path / "c", "uncertainty": tmp_path / "u", "samples": 2}
    run(options, **extra)
    assert {one.doubt for one in run(options, **extra).skipped} == {None}
    run(options, samples=2, seed=1, overwrite=True)  # the comparisons stay as they were
    result = run(options, **extra, seed=1)
    assert isinstance(result.failure, PartialFailure)
    assert {one.doubt for one in result.skipped} == {"made with other settings: seed 0, now 1"}
    assert str(tmp_path / "u" / "0.heat.png") in [one.output for one in result.skipped]
    assert run(options, **extra, seed=1, overwrite=True).failure is None
    assert {one.doubt for one in run(options, **extra, seed=1).skipped} == {None}
    # as by an earlier version, which recorded no comparisons
    manifest = tmp_path / "out" / MANIFEST_NAME
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join(one for one in lines if ".compare." not in one) + "\n")
    assert {one.doubt for one in run(options, **extra, seed=1).skipped} == {None}


def test_planning_writes_nothing(options: Request, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan(options, compare=tmp_path / "c", uncertainty=tmp_path / "u" / "v")
    assert sorted(tmp_path.rglob("*")) == before


def test_overwrite_restores_again(options: Request, tmp_path: Path) -> None:
    run(options)
    before = contents(tmp_path / "out")
    result = run(options, seed=1, overwrite=True)
    assert len(result.images) == 6
    assert not same(contents(tmp_path / "out"), before)
    assert {s.doubt for s in run(options, seed=1).skipped} == {None}


def test_a_damaged_record_is_skipped(options: Request, tmp_path: Path) -> None:
    run(options)
    record = tmp_path / "out" / MANIFEST_NAME
    lines = record.read_text().splitlines()
    record.write_bytes(b"\xff{]\n[1]\n" + "\n".join(lines[:3]).encode())
    assert sum(s.doubt is None for s in run(options).skipped) == 3


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_while_a_file_is_recorded_or_gets_its_name(
    options: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: bool, overwrite: bool
) -> None:
    run(options)
    made = contents(tmp_path / "out")
    if not overwrite:
        (tmp_path / "out" / "0.png").unlink()
    record = tmp_path / "out" / MANIFEST_NAME
    size = record.stat().st_size

    def die(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace" if overwrite else "link", die)
        with pytest.raises(SystemExit):
            restore(plan(options, seed=1, overwrite=overwrite)).run()
    assert record.stat().st_size > size + 256
    if part:
        os.truncate(record, size + 256)
    if overwrite:
        assert {one.doubt for one in run(options).skipped} == {None}
    else:
        assert [len(one) for one in (run(options).images, run(options).skipped)] == [1, 6]
    assert same(contents(tmp_path / "out"), made)
    assert {one.doubt for one in run(options).skipped} == {None}


@pytest.mark.parametrize("after", [1, 3])
def test_closed_in_the_middle_and_run_again_equals_one_run(
    after: int, options: Request, tmp_path: Path
) -> None:
    run(options, out=str(tmp_path / "base"))
    events = iter(restore(plan(options, batch=1)))
    for _ in range(after):
        next(events)
    events.close()  # type: ignore[attr-defined]
    there = contents(tmp_path / "out")
    assert after <= len(there) <= 6
    again = run(options)
    assert len(again.skipped) == len(there)
    assert same(contents(tmp_path / "out"), contents(tmp_path / "base"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_between_images(
    number: signal.Signals, options: Request, tmp_path: Path
) -> None:
    job = restore(plan(options, batch=1))

    def kill_while_running() -> None:
        for i, _ in enumerate(job):
            if i == 0:
                os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="of 6 images to do") as caught:
        kill_while_running()
    assert caught.value.hint == "run the same command again: finished files are skipped"
    assert caught.value.exit_code == 128 + number
    assert 0 < len(contents(tmp_path / "out")) < 6


def test_a_signal_after_the_last_image_is_passed_on(options: Request) -> None:
    job, received = restore(plan(options)), []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        for number, _ in enumerate(job, 1):
            if number == len(job):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert received == [signal.SIGINT]
    assert job.result.failure is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_within_an_image(
    number: signal.Signals, options: Request, tmp_path: Path
) -> None:
    base = run(options, out=str(tmp_path / "base"), batch=1)
    job = restore(plan(options, batch=1))
    done = 0
    killed: list[float] = []

    def kill_in_the_middle(events: float) -> None:
        assert not killed, "it went on"
        if done + events > 2.5:
            killed.append(done + events)
            os.kill(os.getpid(), number)

    def count() -> None:
        nonlocal done
        for _ in job:
            done += 1

    job.meter.watch = kill_in_the_middle
    with pytest.raises(Interrupted, match="stopped with") as caught:
        count()
    assert caught.value.exit_code == 128 + number
    assert killed[0] < 2.9
    assert len(contents(tmp_path / "out")) == done == 2 < len(base.images)
    assert not list((tmp_path / "out").glob(".*tmp*"))
    run(options, batch=1)
    assert same(contents(tmp_path / "out"), contents(tmp_path / "base"))


@pytest.mark.parametrize(
    ("changes", "most"),
    [({"batch": 1}, 1), ({}, 4), ({"samples": 3}, 4), ({"self_ensemble": True, "batch": 2}, 2)],
)
def test_meter_and_events_together_progress_evenly(
    options: Request, changes: dict[str, object], most: int
) -> None:
    """Results are written, and their events follow, while the next images are being restored."""
    job = restore(plan(options, **changes))
    shown, done = [0.0], 0

    def watch(events: float) -> None:
        shown.append(done + events)

    job.meter.watch = watch
    for _ in job:
        done += 1
    steps = np.diff(shown)
    assert done == 6
    assert shown[-1] == pytest.approx(6.0)
    assert steps.min() > -1e-9
    assert steps.max() < 0.3 * most


@pytest.mark.parametrize("tile", [None, 32])
def test_the_meter_of_tiles_ends_at_one(options: Request, tmp_path: Path, tile: int | None) -> None:
    one = save(tmp_path / "one.png", random_picture(41, 100))
    job = restore(plan(options, source=str(one), tile=tile))
    told: list[float] = []
    job.meter.watch = told.append
    job.run()
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)


def test_a_corrupt_file_is_reported_and_the_rest_restored(options: Request, tmp_path: Path) -> None:
    (tmp_path / "in" / "bad.png").write_text("text")
    cut = (tmp_path / "in" / "0.png").read_bytes()[:-200]
    (tmp_path / "in" / "cut.png").write_bytes(cut)
    result = run(options)
    assert isinstance(result.failure, PartialFailure)
    assert "2 of 8 images failed" in str(result.failure)
    assert len(result.failure.details) == 2
    assert any("bad.png" in line for line in result.failure.details)
    assert any("cut.png" in line for line in result.failure.details)
    assert len(contents(tmp_path / "out")) == 6


def test_a_partial_failure_may_be_of_all_images(weights: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_text("text")
    result = run(Request(str(tmp_path / "in"), str(tmp_path / "out"), weights))
    assert isinstance(result.failure, PartialFailure)


def test_options_are_checked_before_weights_and_inputs(options: Request, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--tile must be a multiple of 8"):
        run(options, weights=None, source="missing", tile=1)
    with pytest.raises(CheckpointError, match="nowhere"):
        run(options, weights="nowhere", source="missing")
    with pytest.raises(DataError, match="missing: no such file or folder"):
        run(options, source="missing")


def test_an_output_inside_a_file_is_refused_before_work(options: Request, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in ("file", "file/out", "file/a.png"):
        source = f"{options.source}/0.png" if out.endswith(".png") else options.source
        with pytest.raises(ResourceError, match="regular file"):
            plan(options, source=source, out=str(tmp_path / out))


def test_inputs_and_outputs_in_one_folder_are_refused(options: Request) -> None:
    with pytest.raises(UsageError, match="one folder"):
        plan(options, out=options.source)


def test_records_of_inputs_are_read_only_where_a_file_could_be_replaced(
    options: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def open_records(folder: Path, *rest: Any) -> Manifest:
        opened.append(folder)
        return Manifest(folder, *rest)

    monkeypatch.setattr(restore_plan, "Manifest", open_records)
    plan(options)
    assert opened == [tmp_path / "out"]
    save(tmp_path / "out" / "0.png", random_picture(8, 8))
    plan(options)
    assert opened[2:4] == [tmp_path / "in", tmp_path]


def test_an_input_may_be_deep_in_a_tree(weights: str, tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(490):
        folder = folder / "d"
        folder.mkdir()
    source = save(folder / "a.png", random_picture(8, 8))
    out = save(tmp_path / "out" / "a.png", random_picture(8, 8)).parent
    assert len(plan(Request(source, out, weights)).skipped) == 1


@pytest.mark.parametrize("same_inode", [True, False])
@pytest.mark.parametrize("option", ["out", "compare"])
def test_the_inputs_folder_by_another_name_is_refused(
    options: Request,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    same_inode: bool,
) -> None:
    """As by `restore Photos photos` on a file system that ignores case."""
    folder = Path(options.source)
    other = found_under(monkeypatch, folder, tmp_path / "IN", same_inode=same_inode)
    with pytest.raises(UsageError, match=r"one folder|folder of the inputs"):
        plan(options, **{option: str(other) if option == "out" else other})


@pytest.mark.parametrize("option", ["compare", "uncertainty"])
def test_extra_pictures_need_a_separate_folder(
    options: Request, tmp_path: Path, option: str
) -> None:
    """The next run would restore them among the inputs, and `eval` score them among the outputs."""
    (tmp_path / "link").symlink_to(options.source)
    places = {options.source: "inputs", tmp_path / "link": "inputs", options.out: "outputs"}
    for folder, whose in places.items():
        for place in (Path(folder), Path(folder) / "a" / "b"):  # sub-folders are searched too
            with pytest.raises(
                UsageError, match=f"--{option} must not be in the folder of the {whose}"
            ):
                plan(options, **{option: place})
    plan(options, **{option: tmp_path / "seen"})


@pytest.mark.parametrize("option", ["compare", "uncertainty"])
def test_extra_pictures_are_not_mixed_with_matched_or_listed_inputs(
    options: Request, tmp_path: Path, option: str
) -> None:
    folder = Path(options.source)
    (tmp_path / "list.txt").write_text(f"{folder}/0.png\n{folder}/1.png\n")
    several = (f"{folder}/*.png", f"@{tmp_path}/list.txt", [f"{folder}/0.png", f"{folder}/1.png"])
    for source in several:
        with pytest.raises(UsageError, match=f"--{option} must not be in the folder of the inputs"):
            plan(options, source=source, **{option: folder})
        plan(options, source=source, **{option: folder / "seen"})  # is not matched or listed
    plan(options, source=f"{folder}/0.png", **{option: folder})


def test_a_full_disk_ends_the_run(options: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, replace: bool) -> None:
        raise ResourceError("disk full", where=path)

    monkeypatch.setattr(restore_pictures, "atomic_path", full)
    with pytest.raises(ResourceError, match="disk full"):
        run(options)


def test_an_image_that_is_too_large_is_named_before_work(options: Request, tmp_path: Path) -> None:
    save(tmp_path / "in" / "big.png", random_picture(320, 320))
    single = f"{options.source}/big.png"
    with pytest.raises(ResourceError, match=r"320x320 px needs .* may be used") as caught:
        plan(options, source=single, max_memory=4_000_000)
    assert "megapixels fit" in str(caught.value.hint)
    made = plan(options, max_memory=4_000_000)
    assert any("big.png" in warning for warning in made.warnings)
    result = restore(made).run()
    assert isinstance(result.failure, PartialFailure)
    assert "320x320" in result.failure.details[0]
    assert len(contents(tmp_path / "out")) == 6


def test_samples_give_other_pixels_and_maps(options: Request, tmp_path: Path) -> None:
    run(options, out=str(tmp_path / "one"))
    changes = {"samples": 3, "uncertainty": tmp_path / "u", "compare": tmp_path / "c"}
    result = run(options, **changes)
    assert {record.calls for record in result.images} == {6}
    assert not same(contents(tmp_path / "out"), contents(tmp_path / "one"))
    spread = read_picture(tmp_path / "u" / "sub" / "5.spread.png")
    assert (spread.bit_depth, spread.grey) == (16, True)
    assert spread.pixels.max() > 0
    assert pixels(tmp_path / "u" / "2.heat.png").shape == (9, 20, 3)
    assert pixels(tmp_path / "c" / "2.compare.png").shape == (9, 76, 3)
    assert len(run(options, **changes).skipped) == 6


def test_missing_extras_are_made_without_changing_the_outputs(
    options: Request, tmp_path: Path
) -> None:
    run(options)
    stamp = (tmp_path / "out" / "0.png").stat().st_mtime_ns
    run(options, compare=tmp_path / "c")
    assert (tmp_path / "c" / "0.compare.png").exists()
    assert (tmp_path / "out" / "0.png").stat().st_mtime_ns == stamp


def test_a_file_that_another_run_wrote_meanwhile_is_not_recorded(
    options: Request, tmp_path: Path
) -> None:
    waiting = plan(options, seed=1)
    run(options, seed=0)
    outputs = sorted((tmp_path / "out").rglob("*.png"))
    made = [path.read_bytes() for path in outputs]
    late = restore(waiting).run()
    assert not late.images
    assert sorted(one.output for one in late.skipped) == sorted(map(str, outputs))
    assert {one.doubt for one in late.skipped} == {"made with other settings: seed 0, now 1"}
    assert isinstance(late.failure, PartialFailure)
    assert [path.read_bytes() for path in outputs] == made
    assert {one.doubt for one in run(options, seed=0).skipped} == {None}
    doubts = {one.doubt for one in run(options, seed=1).skipped}
    assert doubts == {"made with other settings: seed 0, now 1"}


def test_a_file_that_appears_during_encoding_is_kept(
    options: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, encode = tmp_path / "out" / "0.png", pictures.encode

    def late(*args: Any) -> bytes:
        output.write_bytes(b"another run's")
        return encode(*args)

    monkeypatch.setattr(pictures, "encode", late)
    result = run(options, source=str(tmp_path / "in" / "0.png"))
    assert [(one.output, one.doubt) for one in result.skipped] == [
        (str(output), "this program did not write it, or it was changed since")
    ]
    assert isinstance(result.failure, PartialFailure)
    assert output.read_bytes() == b"another run's"


def test_two_runs_of_one_command_at_a_time_both_succeed(options: Request, tmp_path: Path) -> None:
    waiting = plan(options)
    first = run(options)
    late = restore(waiting).run()
    assert len(late.images) == len(first.images) == len(list((tmp_path / "out").rglob("*.png")))
    assert all(
        one.existed and [str(path) for path in one.kept] == [one.output] for one in late.images
    )
    assert (late.skipped, late.failure) == ([], None)


def test_a_file_of_another_run_that_appears_during_encoding_is_kept(
    options: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line about this run's file, which got no name, is not taken for one about the other."""
    options.source = str(tmp_path / "in" / "0.png")
    encode, others = pictures.encode, iter((plan(options, seed=1),))

    def late(*args: Any) -> bytes:
        for other in others:
            restore(other).run()
        return encode(*args)

    waiting = plan(options, seed=0)
    monkeypatch.setattr(pictures, "encode", late)
    (skipped,) = restore(waiting).run().skipped
    assert skipped.doubt == "made with other settings: seed 1, now 0"


def test_bytes_from_standard_input_are_restored_to_a_file(options: Request, tmp_path: Path) -> None:
    data = (tmp_path / "in" / "0.png").read_bytes()
    out = tmp_path / "made.png"
    run(options, source="-", out=str(out), stdin=data, identity=True)
    assert np.array_equal(pixels(out), random_picture(16, 16, seed=0).pixels)


def test_other_bytes_from_standard_input_are_another_input(
    options: Request, tmp_path: Path
) -> None:
    first, second = ((tmp_path / "in" / f"{i}.png").read_bytes() for i in (0, 1))
    words: dict[str, Any] = {"source": "-", "out": str(tmp_path / "made.png")}
    run(options, **words, stdin=first)
    made = (tmp_path / "made.png").read_bytes()
    again = run(options, **words, stdin=first)
    assert [one.doubt for one in again.skipped] == [None]
    other = run(options, **words, stdin=second)
    assert [one.doubt for one in other.skipped] == [OTHER_INPUT]
    assert other.failure is not None
    assert run(options, **words, stdin=second, overwrite=True).failure is None
    assert (tmp_path / "made.png").read_bytes() != made


def test_standard_output_needs_no_temporary_folder(
    options: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
    monkeypatch.setattr(tempfile, "tempdir", "/missing")
    assert run(options, source=f"{options.source}/2.png", out="-", identity=True).failure is None
    before = read_picture(Path(options.source) / "2.png").pixels
    assert np.array_equal(read_picture(out.getvalue()).pixels, before)


def test_standard_input_replaces_no_file_of_the_user(options: Request, tmp_path: Path) -> None:
    mine = tmp_path / "mine.png"
    save(mine, random_picture(8, 8))
    before = mine.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(
            UsageError, match="OUT exists, and there is no record that this program wrote it"
        ):
            plan(options, source="-", out=str(mine), stdin=before, overwrite=overwrite)
    assert mine.read_bytes() == before


def test_names_that_are_not_utf8_are_restored(options: Request, tmp_path: Path) -> None:
    latin = os.fsdecode(b"caf\xe9.png")
    save(tmp_path / "in" / latin, random_picture(16, 16, seed=9))
    assert run(options).failure is None
    assert (tmp_path / "out" / latin).exists()
    assert {one.doubt for one in run(options).skipped} == {None}


def test_an_output_name_that_is_too_long_fails_one_image(options: Request, tmp_path: Path) -> None:
    save(tmp_path / "in" / f"{'a' * 250}.png", random_picture(16, 16))
    result = run(options, suffix="_restored", compare=tmp_path / "c")
    assert isinstance(result.failure, PartialFailure)
    assert "1 of 7 images failed" in str(result.failure)
    assert "aaaa" in result.failure.details[0]
    assert len(contents(tmp_path / "out")) == 6


def test_a_file_in_place_of_an_output_sub_folder_fails_its_images(
    options: Request, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("a file")
    result = run(options)
    assert "1 of 6 images failed" in str(result.failure)
    assert len(contents(tmp_path / "out")) == 5


def test_a_file_that_can_no_longer_be_read_fails_one_image(
    options: Request, tmp_path: Path
) -> None:
    made = plan(options)
    (tmp_path / "in" / "0.png").unlink()
    result = restore(made).run()
    assert "1 of 6 images failed" in str(result.failure)
    assert len(contents(tmp_path / "out")) == 5


def test_pages_of_several_sizes_are_restored(options: Request, tmp_path: Path) -> None:
    pages = [Image.new("RGB", size) for size in ((20, 9), (20, 9), (8, 30), (20, 9))]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    result = run(options, source=str(tmp_path / "pages.tif"), batch=4, identity=True)
    assert result.failure is None
    assert [pixels(tmp_path / "out" / f"pages-000{i + 1}.png").shape[:2] for i in range(4)] == [
        (9, 20), (9, 20), (30, 8), (9, 20),
    ]  # fmt: skip


def test_a_file_of_another_program_is_never_replaced(options: Request, tmp_path: Path) -> None:
    first, second = (f"{options.source}/{i}.png" for i in (0, 1))
    before = pixels(Path(second))
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="no record that this program wrote it"):
            plan(options, source=first, out=second, overwrite=overwrite)
    assert np.array_equal(pixels(Path(second)), before)


def test_outputs_that_were_changed_later_are_named(options: Request, tmp_path: Path) -> None:
    extra = {"compare": tmp_path / "c"}
    run(options, **extra)
    made = contents(tmp_path / "out")
    (tmp_path / "out" / "0.png").write_bytes(b"")
    shutil.copy(tmp_path / "in" / "1.png", tmp_path / "out" / "1.png")
    (tmp_path / "c" / "2.compare.png").write_bytes(b"")
    shutil.copyfile(tmp_path / "out" / "3.png", tmp_path / "copy")  # the same content
    (tmp_path / "copy").replace(tmp_path / "out" / "3.png")
    again = run(options, **extra)
    assert {
        Path(one.output).name: one.doubt for one in again.skipped if one.doubt
    } == dict.fromkeys(
        ["0.png", "1.png", "2.compare.png"],
        "this program did not write it, or it was changed since",
    )
    assert isinstance(again.failure, PartialFailure)
    assert run(options, **extra, overwrite=True).failure is None
    assert same(contents(tmp_path / "out"), made)
    assert {one.doubt for one in run(options, **extra).skipped} == {None}


def test_a_file_in_the_place_of_an_output_is_never_replaced(
    options: Request, tmp_path: Path
) -> None:
    words = {"source": f"{options.source}/0.png", "out": str(tmp_path / "mine.png")}
    run(options, **words)
    (tmp_path / "mine.png").unlink()
    save(tmp_path / "mine.png", random_picture(8, 8))
    for overwrite in (False, True):
        with pytest.raises(
            UsageError, match="OUT was not written by this program, or was changed since"
        ):
            plan(options, **words, overwrite=overwrite)


def test_records_that_the_user_may_not_read_or_write_are_kept_apart(
    options: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of several users, the records belong to the one who restored there first."""
    run(options)
    refuse_records(monkeypatch, "write_to", tmp_path / "out" / MANIFEST_NAME)
    (tmp_path / "out" / "0.png").unlink()
    assert len(run(options).images) == 1
    assert {one.doubt for one in run(options).skipped} == {None}
    refuse_records(monkeypatch, "read", tmp_path / "out" / MANIFEST_NAME)
    made = plan(options)
    doubts = {Path(one.output).name: one.doubt for one in made.skipped}
    assert doubts.pop("0.png") is None
    assert set(doubts.values()) == {"there is no record of how it was made"}
    assert f"{MANIFEST_NAME} cannot be read (no permission)" in made.warnings[0]


def test_records_that_the_user_may_never_write_are_reported_before_work(
    options: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (MANIFEST_NAME, _own_name()):
        refuse_records(monkeypatch, "write_to", tmp_path / "out" / name)
    with pytest.raises(ResourceError, match=r"jsonl: cannot write the file"):
        plan(options)


def test_records_that_cannot_be_written_are_reported_before_work(
    options: Request, tmp_path: Path
) -> None:
    (tmp_path / "out" / MANIFEST_NAME).mkdir(parents=True)
    with pytest.raises(ResourceError, match=f"{MANIFEST_NAME}: cannot write the file"):
        plan(options)


def test_an_output_of_an_earlier_run_is_skipped_or_replaced(
    options: Request, tmp_path: Path
) -> None:
    words = {"source": f"{options.source}/0.png", "out": str(tmp_path / "mine.png")}
    assert run(options, **words).failure is None
    assert run(options, **words).skipped[0].doubt is None
    (other,) = run(options, seed=1, **words).skipped
    assert "seed 0, now 1" in str(other.doubt)
    assert run(options, seed=1, overwrite=True, **words).failure is None


def test_every_part_of_the_planning_is_counted(options: Request, tmp_path: Path) -> None:
    """Half of the time goes into finished files, after their headers were read."""
    run(options)
    (tmp_path / "out" / "0.png").unlink()
    seen: dict[str, list[tuple[int, int]]] = {}
    plan(options, looked=lambda what, *count: seen.setdefault(what, []).append(count))
    assert list(seen) == [
        "recognising files", "reading headers", "checking the outputs' names",
        "comparing with finished files", "checking sizes"
    ]  # fmt: skip
    lasts = [counts[-1] for counts in seen.values()]
    assert lasts == [(5, 6)] * 4 + [(0, 1)]


def test_several_files_are_restored_into_a_folder(options: Request, tmp_path: Path) -> None:
    names = [f"{options.source}/{name}.png" for name in ("0", "1", "sub/5")]
    assert run(options, source=names).failure is None
    assert set(contents(tmp_path / "out")) == {"0.png", "1.png", "sub/5.png"}
    with pytest.raises(UsageError, match="OUT must be a folder for 2 images"):
        plan(options, source=names[:2], out=f"{options.source}/2.png")


def test_a_sub_folder_that_cannot_be_written_fails_its_images(
    options: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access

    def refuse(path: Path, mode: int) -> bool:
        return Path(path).name != "sub" and access(path, mode)

    made = plan(options)
    (tmp_path / "out" / "sub").mkdir(parents=True)
    monkeypatch.setattr(os, "access", refuse)
    result = restore(made).run()
    assert "1 of 6 images failed" in str(result.failure)
    assert len(contents(tmp_path / "out")) == 5


def test_without_kernels_for_the_gpu_the_cpu_is_used(
    options: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch, (6, 1), ["sm_75"])
    planned = plan(options, device="auto")
    assert planned.runtime.device.type == "cpu"
    assert any(line.startswith("running on the CPU: torch") for line in planned.warnings)
