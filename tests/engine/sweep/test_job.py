"""sweep-steps: the schedules, the choice, and the files that a sweep writes."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c2fdft_cli.core.diffusion import spaced_timesteps
from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.data.shards.format import Entry, ShardHeader
from c2fdft_cli.engine.prepare.job import prepare
from c2fdft_cli.engine.prepare.options import PrepareOptions, Synthesis
from c2fdft_cli.engine.sampling.scoring import Scored
from c2fdft_cli.engine.sampling.subject import Subject, open_subject, open_validation_of
from c2fdft_cli.engine.sweep import job as sweep_job
from c2fdft_cli.engine.sweep import log as sweep_log
from c2fdft_cli.engine.sweep import report
from c2fdft_cli.engine.sweep.job import Sweep, sweep
from c2fdft_cli.engine.sweep.log import SweepLog, Trial
from c2fdft_cli.engine.sweep.options import (
    Rule,
    SweepOptions,
    parse_rule,
    parse_spacings,
    parse_steps,
)
from c2fdft_cli.engine.sweep.report import SweepResult
from c2fdft_cli.engine.sweep.schedules import make_schedules
from c2fdft_cli.engine.sweep.table import SweepRow, choose, make_table, pareto
from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.engine.weights.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from c2fdft_cli.engine.weights.contents import weights_in
from c2fdft_cli.engine.weights.convert import convert
from c2fdft_cli.engine.weights.convert_options import ConvertOptions
from c2fdft_cli.engine.weights.stored import open_stored
from c2fdft_cli.errors import CheckpointError, DataError, Interrupted, ResourceError, UsageError
from c2fdft_cli.recipe.schema import Diffusion, Network, Recipe
from tests.kit.formula import photo
from tests.kit.restore import overflow_in_half_precision
from tests.kit.shards import pairs_of, write_shard
from tests.kit.weights import write_random

NETWORK = Network(dim=8, blocks=[1, 1, 1, 1], heads=[1, 2, 4, 8])


def write_weights(path: Path, stage: str, data: Path | None, **meta: Any) -> Path:
    said = {"stage": stage, "recipe_name": "tiny", **meta}
    return write_random(path, seed=3, protocol="derain", data=data, **said)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    for i in range(4):
        for side in ("input", "target"):
            (root / "src" / side).mkdir(parents=True, exist_ok=True)
        save_rgb8(root / "src" / "target" / f"{i}.png", photo(i, 17, 22))
        save_rgb8(root / "src" / "input" / f"{i}.png", np.minimum(photo(i, 17, 22) + 20, 255))
    out = root / "shards"
    prepare(PrepareOptions(source=root / "src", out=out, val=3)).run()
    return out


@pytest.fixture
def coarse(shards: Path, tmp_path: Path) -> Path:
    return write_weights(tmp_path / "coarse.pt", "coarse", shards, metrics={"step": 7})


def run(checkpoint: Path, **options: Any) -> SweepResult:
    options = {"steps": (1, 2), "device": "cpu", "precision": "fp32", **options}
    return sweep(checkpoint, SweepOptions(**options)).run()


# -- requests ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "counts"),
    [("4", (4,)), ("1-3", (1, 2, 3)), ("8,2, 4", (2, 4, 8)), ("1-2,2-3", (1, 2, 3))],
)
def test_steps_are_parsed_from_counts_and_ranges(text: str, counts: tuple[int, ...]) -> None:
    assert parse_steps(text) == counts


@pytest.mark.parametrize("text", ["", "0", "3-1", "x", "1-", "-1", "1;2", "1.5"])
def test_invalid_steps_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--steps"):
        parse_steps(text)


def test_other_invalid_values_are_refused() -> None:
    assert parse_spacings("linspace,trailing") == ("linspace", "trailing")
    with pytest.raises(UsageError, match="got 'cosine'"):
        parse_spacings("linspace,cosine")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("psnr", Rule("psnr")),
        ("ssim", Rule("ssim")),
        ("within:0.2dB", Rule("within", 0.2)),
        ("within:1", Rule("within", 1.0)),
        ("within:0.5 db", Rule("within", 0.5)),
    ],
)
def test_rules_are_parsed(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    "text", ["", "within", "within:", "within:-1dB", "lpips", "within:1%", f"within:{'9' * 400}"]
)
def test_invalid_rules_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--choose"):
        parse_rule(text)


def test_schedules_combine_counts_spacings_and_starts() -> None:
    further = {"given": [[999, 500], [999]], "checkpoint": [[999, 500], [7]], "one step": [[500]]}
    found = make_schedules([1, 4], ["linspace", "trailing"], [999, 750], further)
    assert found == {
        (999,): "linspace",
        (999, 666, 333, 0): "linspace",
        (750,): "linspace from 750",
        (750, 500, 250, 0): "linspace from 750",
        (999, 749, 499, 249): "trailing",
        (750, 562, 375, 187): "trailing from 750",
        (999, 500): "given",
        (7,): "checkpoint",
        (500,): "one step",
    }
    assert list(make_schedules([4])) == [tuple(spaced_timesteps(4))]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"starts": [1000]}, r"timesteps must be 0 to 999, got \[1000\]"),
        ({"further": {"given": [[5, 5]]}}, r"timesteps must descend, got \[5, 5\]"),
        ({"further": {"given": [[1000]]}}, r"timesteps must be 0 to 999, got \[1000\]"),
        ({"starts": [2], "steps": [4]}, "steps must be 1 to 3, got 4"),
        ({"steps": []}, "a sweep tries 1 to 1000 schedules, got 0"),
        ({"steps": [1], "starts": range(1000), "further": {"given": [[1, 0]]}}, "got 1001"),
    ],
)
def test_impossible_schedules_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make_schedules(**{"steps": [2], **wrong})


# -- the choice --------------------------------------------------------------------


def scores(steps: int, psnr: float, ssim: float) -> SweepRow:
    return SweepRow(steps, tuple(range(steps, 0, -1)), "linspace", psnr, ssim)


ROWS = [
    scores(1, 20.0, 0.50),
    scores(2, 29.9, 0.91),
    scores(3, 29.9, 0.92),
    scores(4, 30.0, 0.90),
    scores(5, math.nan, math.nan),
]


@pytest.mark.parametrize(
    ("rule", "index"),
    [("within:0.2dB", 1), ("within:0.05dB", 3), ("within:50dB", 0), ("psnr", 3), ("ssim", 2)],
)
def test_the_choice_follows_the_rule(rule: str, index: int) -> None:
    assert choose(ROWS, parse_rule(rule)) is ROWS[index]


def test_the_choice_without_a_finite_row_and_among_equals() -> None:
    assert choose(ROWS[-1:], parse_rule("psnr")) is None
    equal = [scores(3, 30.0, 0.9), scores(2, 30.0, 0.9)]
    assert choose(equal, parse_rule("psnr")) is equal[1]
    same_calls = [scores(2, 29.9, 0.9), scores(2, 30.0, 0.9)]
    assert choose(same_calls, parse_rule("within:0.2dB")) is same_calls[1]
    infinite = [scores(1, 30.0, 0.9), scores(2, math.inf, 1.0)]
    assert choose(infinite, parse_rule("within:0.2dB")) is infinite[1]


def test_a_row_has_the_median_time_and_the_deviation_of_finite_means() -> None:
    def table(psnr: float) -> SweepRow:
        found = {
            Trial(name, seed, (9,)): Scored(name, 30.0 + seed, 0.8 + seed / 10, seconds=seconds)
            for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 9.0))
            for seed in (0, 1)
        }
        found[Trial("a", 1, (9,))] = Scored("a", psnr, 0.9, seconds=1.0)
        (row,) = make_table({(9,): "a"}, found, ["a", "b", "c"], [0, 1], Rule("psnr"))
        return row

    assert table(31.0).seconds == 2.0
    assert (table(31.0).psnr, table(31.0).ssim) == pytest.approx((30.5, 0.85))
    assert table(31.0).spread == pytest.approx(0.5**0.5)
    for broken in (math.nan, math.inf):
        assert math.isnan(table(broken).spread or 0.0)


def test_pareto_front() -> None:
    assert pareto(ROWS) == [True, True, False, True, False]
    assert pareto([scores(2, 30.0, 0.9), scores(2, 30.0, 0.8)]) == [True, True]


# -- a whole sweep -----------------------------------------------------------------


def test_a_sweep_chooses_stores_the_timesteps_and_writes_files(coarse: Path, shards: Path) -> None:
    before = load_checkpoint(coarse)
    job = sweep(coarse, SweepOptions(steps=(1, 2, 3), device="cpu", precision="fp32"))
    events = list(job)
    result = job.result
    assert len(job) == len(events) == 3 * 6
    assert (result.protocol, result.images, result.stage) == ("derain", 3, "coarse")
    one_step = [(999,), (700,), (500,), (300,)]
    assert [row.grid for row in result.rows] == [*one_step, (999, 0), (999, 500, 0)]
    assert [row.label for row in result.rows[:4]] == ["linspace", *["one step"] * 3]
    assert result.calls_spent == 3 * (4 + 2 + 3)
    assert sum(row.chosen for row in result.rows) == 1
    assert all(row.trials == 3 and row.seconds > 0 for row in result.rows)

    after = load_checkpoint(coarse)
    assert (after.meta.grid, after.meta.grid_from) == (list(result.chosen.grid), "sweep")
    assert after.meta.metrics["step"] == 7
    assert after.meta.metrics["sweep"] == {
        "protocol": "derain",
        "images": 3,
        "psnr": pytest.approx(result.chosen.psnr),
        "ssim": pytest.approx(result.chosen.ssim),
        "rule": "fewest sampling steps within 0.2 dB of the best PSNR",
        "trained_grid": None,
    }
    assert (after.meta.recipe, after.meta.data) == (before.meta.recipe, str(shards))
    assert all(torch.equal(after.ema[name], tensor) for name, tensor in before.ema.items())

    saved = json.loads((coarse.parent / "sweep.json").read_text())
    assert saved["complete"] is True
    assert saved["checkpoint"] == str(coarse)
    assert saved["grid"] == list(result.chosen.grid)
    assert [row["first_t"] for row in saved["rows"]] == [999, 700, 500, 300, 999, 999]
    with (coarse.parent / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["grid"] for row in rows] == ["999", "700", "500", "300", "999 0", "999 500 0"]
    assert float(rows[1]["psnr"]) == pytest.approx(result.rows[1].psnr)


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("half", [None, "bf16"])
@pytest.mark.parametrize("form", ["checkpoint", "safetensors"])
def test_storing_the_timesteps_does_not_change_the_weights(
    coarse: Path, tmp_path: Path, form: str, half: str | None, weights: str
) -> None:
    """The sets of weights, their names and half precision are kept."""
    path = tmp_path / ("one.safetensors" if form == "safetensors" else "one.pt")
    if form == "safetensors":
        pytest.importorskip("safetensors")
        convert(coarse, path, ConvertOptions(raw=weights == "raw", half=half))
    else:  # with both sets, or only the average
        convert(coarse, path, ConvertOptions(ema_only=weights == "ema", half=half))
    sets, tensors = stored(path)
    size = path.stat().st_size
    run(path, out=tmp_path / "out", steps=(2,))
    assert load_checkpoint(path).meta.grid_from == "sweep"
    assert stored(path)[0] == sets
    assert stored(path)[1].keys() == tensors.keys()
    for name, tensor in stored(path)[1].items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])
    assert path.stat().st_size < size + 4096


def stored(path: Path) -> tuple[tuple[str, ...], dict[str, torch.Tensor]]:
    """The names of the sets in a file, and the tensors of the first as they are stored."""
    with open_stored(path) as file:
        sets, _ = weights_in(file)
        return tuple(sets), file.load(next(iter(sets.values())))


@pytest.mark.usefixtures("plots")
def test_a_sweep_draws_a_plot(coarse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    bands: list[tuple[float, float]] = []
    monkeypatch.setattr(Axes, "axhspan", lambda _, *ends, **__: bands.append(ends))
    result = run(coarse, spacings=("linspace", "trailing"), schedules=((400,),))
    best = max(row.psnr for row in result.rows)
    assert bands == [(best - 0.2, best)]  # what the default rule may choose from
    picture = coarse.parent / "sweep.png"
    assert picture in result.files
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_seeds_start_at_the_requested_one(coarse: Path, tmp_path: Path) -> None:
    one, two, both = (
        run(
            coarse, steps=(1,), seed=seed, seeds=seeds, stamp=False, out=tmp_path / f"{seed}{seeds}"
        )
        for seed, seeds in ((1, 1), (2, 1), (1, 2))
    )
    assert both.rows[0].trials == 6
    assert both.rows[0].psnr == pytest.approx((one.rows[0].psnr + two.rows[0].psnr) / 2)
    assert one.rows[0].psnr != two.rows[0].psnr


def test_images_restored_again_in_float32_are_reported(
    coarse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After what is to be known of the device."""
    want = run(coarse, out=tmp_path / "want", stamp=False)
    overflow_in_half_precision(monkeypatch)
    opened = sweep_job.open_subject

    def noted(*args: Any, **options: Any) -> Subject:
        subject = opened(*args, **options)
        return replace(subject, runtime=replace(subject.runtime, device_note="of the device"))

    monkeypatch.setattr(sweep_job, "open_subject", noted)
    again = run(coarse, out=tmp_path / "again", stamp=False, precision="bf16")
    assert again.notes[0] == "of the device"
    notes = [note for note in again.notes if "restored again in fp32" in note]
    assert len(notes) == len(set(notes)) == again.images
    assert [row.psnr for row in again.rows] == [row.psnr for row in want.rows]


def test_an_image_too_small_to_score_is_refused_before_any_restoration(
    coarse: Path, tmp_path: Path
) -> None:
    entries = [Entry("large", 16, 16), Entry("small", 10, 24)]
    header = ShardHeader("val", "{}", "input/target", "rain", "0.1")
    write_shard(tmp_path / "val-00000.h5", entries, pairs_of(entries), header)
    with pytest.raises(DataError, match="small: 24 x 10 px, but SSIM needs 11 x 11"):
        sweep(coarse, SweepOptions(data=tmp_path, device="cpu"))
    assert run(coarse, data=tmp_path, images=1).images == 1  # the other one


def test_no_stamp_does_not_change_the_file(coarse: Path, tmp_path: Path) -> None:
    before = coarse.read_bytes()
    result = run(coarse, stamp=False, out=tmp_path / "report")
    assert not result.stamped
    assert coarse.read_bytes() == before
    assert sorted(path.name for path in coarse.parent.glob("sweep*")) == []
    assert (tmp_path / "report" / "sweep.json").is_file()


@pytest.mark.parametrize(
    "more", [{"optimizer": {"lr": 1e-3}, "epoch": 3}, {"state_version": 1, "loss.w": torch.ones(2)}]
)
def test_a_file_that_holds_more_than_weights_is_not_stamped(
    coarse: Path, shards: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    """As a training state, which could not be resumed from the weights alone."""
    path = tmp_path / "state.pt"
    content = torch.load(coarse, weights_only=True)
    torch.save({**content, **more}, path)
    before = path.read_bytes()
    with pytest.raises(
        UsageError, match="would remove what the file holds besides the weights"
    ) as error:
        run(path)
    assert all(name in str(error.value) for name in more)
    assert path.read_bytes() == before
    assert run(path, stamp=False, images=1).chosen
    assert path.read_bytes() == before
    torch.save({"checkpoint": {"state_dict": content["params"], **more}}, path)
    with pytest.raises(UsageError, match=r"\(checkpoint\)"):
        run(path, data=shards)


@pytest.mark.parametrize("more", ["tensor", "metadata", "second set"])
def test_a_safetensors_file_that_holds_more_than_one_set_is_not_stamped(
    coarse: Path, tmp_path: Path, more: str
) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    given = load_checkpoint(coarse)
    about = {"c2fdft": given.meta.to_json(), "format": "pt"}
    content = {f"params_ema.{name}": tensor for name, tensor in given.ema.items()}
    if more == "tensor":
        content["teacher.w"] = torch.ones(3)
    elif more == "metadata":
        about["licence"] = "CC BY"
    else:
        content |= {f"params.{name}": tensor + 1 for name, tensor in given.params.items()}
    path = tmp_path / "other.safetensors"
    save_file(content, path, metadata=about)
    before = path.read_bytes()
    named = {"tensor": "(teacher.w)", "metadata": "(licence)", "second set": "(params."}[more]
    with pytest.raises(UsageError, match=re.escape(named)):
        run(path)
    assert path.read_bytes() == before
    assert run(path, stamp=False, images=1).chosen
    alone = tmp_path / "alone.safetensors"  # as the hint recommends
    convert(path, alone, ConvertOptions())
    assert run(alone, out=tmp_path / "out", images=1).stamped


def test_weights_that_were_replaced_meanwhile_are_not_stamped(coarse: Path) -> None:
    """A running training replaces its last.pt."""
    job = sweep(coarse, SweepOptions(steps=(1, 2), device="cpu", precision="fp32"))
    events = iter(job)
    next(events)
    new = load_checkpoint(coarse)
    state = {name: 1.5 * tensor for name, tensor in new.ema.items()}
    save_checkpoint(coarse, state, state, new.meta)
    replaced = coarse.read_bytes()
    with pytest.raises(CheckpointError, match="now holds other weights than those that were tried"):
        list(events)
    assert coarse.read_bytes() == replaced
    assert json.loads((coarse.parent / "sweep.json").read_text())["complete"]


@pytest.mark.parametrize("name", ["coarse.pt", "coarse.safetensors"])
def test_weights_that_are_replaced_between_check_and_stamp(
    coarse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The file is read twice: to check its weights, and to store them with the timesteps."""
    if name.endswith(".safetensors"):
        pytest.importorskip("safetensors")
    path, given, load = tmp_path / "new" / name, load_checkpoint(coarse), report.load_checkpoint
    path.parent.mkdir()
    save_checkpoint(path, given.params, given.ema, given.meta)
    new = {name: 1.5 * tensor for name, tensor in given.ema.items()}

    def replaced(path: Path) -> Checkpoint:
        looked_at = load(path)
        save_checkpoint(path, new, new, replace(given.meta, step=77))
        return looked_at

    monkeypatch.setattr(report, "load_checkpoint", replaced)
    with pytest.raises(
        CheckpointError, match="now holds other weights than those that were tried"
    ) as caught:
        run(path)
    assert caught.value.where == str(path)
    found = load_checkpoint(path)
    assert (found.meta.step, found.meta.grid) == (77, None)
    assert all(torch.equal(found.ema[name], tensor) for name, tensor in new.items())


def test_nothing_is_computed_twice(coarse: Path) -> None:
    first = run(coarse, steps=(1, 2))
    again = run(coarse, steps=(1, 2))  # the stamp since then keeps the weights
    assert again.calls_spent == 0
    assert [row.psnr for row in again.rows] == [row.psnr for row in first.rows]
    more = run(coarse, steps=(1, 2, 3))
    assert more.calls_spent == 3 * 3
    assert len(more.rows) == 6


def test_one_image_does_not_depend_on_the_others(coarse: Path, tmp_path: Path) -> None:
    run(coarse, out=tmp_path / "all", stamp=False)
    run(coarse, out=tmp_path / "one", stamp=False, images=1)
    trials = [
        {(t["name"], *t["grid"]): t["psnr"] for t in json.loads(path.read_text())["trials"]}
        for path in (tmp_path / "all" / "sweep.json", tmp_path / "one" / "sweep.json")
    ]
    assert len(trials[1]) == 5
    assert trials[1].items() <= trials[0].items()


def test_several_seeds_give_a_deviation(coarse: Path) -> None:
    result = run(coarse, seeds=3, images=1)
    assert result.rows[0].trials == 3
    assert result.rows[0].spread is not None
    assert result.rows[0].spread > 0
    assert run(coarse, images=1).rows[0].spread is None


def test_an_interrupted_sweep_continues(coarse: Path) -> None:
    grid_before = load_checkpoint(coarse).meta.grid
    job = sweep(coarse, SweepOptions(steps=(1, 2), device="cpu", precision="fp32"))

    def watch() -> None:
        for number, _ in enumerate(job):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="the sweep was stopped") as stopped:
        watch()
    assert stopped.value.exit_code == 143
    assert "the same command resumes" in stopped.value.hint
    saved = json.loads((coarse.parent / "sweep.json").read_text())
    assert saved["complete"] is False
    assert len(saved["trials"]) == 3
    assert load_checkpoint(coarse).meta.grid == grid_before
    rest = run(coarse, steps=(1, 2))
    # three of the 3 x 5 restorations are done: 1, 2 and 1 of the 3 x 6 steps
    assert rest.calls_spent == 3 * 6 - 4
    assert rest.rows[0].trials == 3


def test_a_killed_sweep_keeps_the_scores_of_finished_images(coarse: Path) -> None:
    """Nothing runs when a process is killed, so scores are written while others are computed."""
    job = sweep(coarse, SweepOptions(steps=(1, 2), device="cpu", precision="fp32"))
    names = []
    for tried in job:
        names.append(tried.trial.name)
        if len(set(names)) == 2:
            saved = json.loads((coarse.parent / "sweep.json").read_text())
            break
    assert saved["complete"] is False
    assert [one["name"] for one in saved["trials"]] == names[:-1]


def test_scores_are_saved_seldom_if_saving_takes_long(
    coarse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first image, and once all are restored, by each of four schedules."""
    save, saved = SweepLog.save, []

    def counted(log: SweepLog, document: dict[str, Any]) -> None:
        saved.append((len(log.scores), document["complete"]))
        save(log, document)

    monkeypatch.setattr(SweepLog, "save", counted)
    monkeypatch.setattr(sweep_log, "_SPARING", 1e9)
    run(coarse, steps=(1,), stamp=False)
    assert saved == [(4, False), (12, False), (12, True)]


def test_an_error_costs_no_scores(coarse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the last save was too short a time ago for another one."""
    restore, begun = sweep_job.restore_and_score, []

    def fail_at_the_third(pairs: Any, indices: list[int], *rest: Any) -> Any:
        begun.append(indices)
        if len(begun) == 3:
            raise MemoryError
        return restore(pairs, indices, *rest)

    monkeypatch.setattr(sweep_job, "restore_and_score", fail_at_the_third)
    monkeypatch.setattr(sweep_log, "_SPARING", 1e9)
    with pytest.raises(MemoryError):
        run(coarse, steps=(1,))
    saved = json.loads((coarse.parent / "sweep.json").read_text())
    assert len({one["name"] for one in saved["trials"]}) == 2


def test_fine_weights_are_tried_on_their_own_timesteps(shards: Path, tmp_path: Path) -> None:
    fine = write_weights(tmp_path / "fine.pt", "fine", shards, grid=[900, 450])
    result = run(fine, steps=(1,))
    assert result.trained_grid == [900, 450]
    assert [row.grid for row in result.rows if row.trained] == [(900, 450)]
    other = run(fine, steps=(1,), rule=parse_rule("within:99dB"))
    assert other.chosen.grid == (999,)
    assert load_checkpoint(fine).meta.grid == [999]
    assert run(fine, steps=(1,)).trained_grid == [900, 450]  # also after the first stamp


def test_the_timesteps_in_the_checkpoint_are_always_tried(shards: Path, tmp_path: Path) -> None:
    path = write_weights(tmp_path / "c.pt", "coarse", shards, grid=[800, 200], grid_from="sweep")
    rows = run(path, steps=(1,), stamp=False).rows
    assert [row.grid for row in rows if row.current] == [(800, 200)]
    assert not any(row.trained for row in rows)


def test_official_weights_without_metadata_can_be_swept(shards: Path, tmp_path: Path) -> None:
    state = make_network(NETWORK).state_dict()
    path = tmp_path / "released.pth"
    torch.save({"params": state, "params_ema": state}, path)
    with pytest.raises(DataError, match="does not name its data") as error:
        run(path)
    assert "--data" in error.value.hint
    result = run(path, data=shards, images=1)
    assert (result.protocol, result.stage) == ("rgb", "released")
    assert load_checkpoint(path).timesteps() == list(result.chosen.grid)


def test_clean_only_shards_are_degraded_by_the_recipe(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "src").mkdir(exist_ok=True)
        save_rgb8(tmp_path / "src" / f"{i}.png", photo(i, 40, 40))
    how = Synthesis("noise", {}, None, store=False)
    prepare(PrepareOptions(tmp_path / "src", tmp_path / "shards", val=1, synthesize=how)).run()
    recipe = Recipe(network=NETWORK)
    recipe.data.synthesize = "noise"
    path = write_weights(tmp_path / "c.pt", "coarse", tmp_path / "shards", recipe=recipe.to_dict())
    assert run(path, steps=(1,)).rows[0].trials == 1
    # what the degraded images depend on, besides the masks of rain
    for section, key, value in (("data", "synthesis", {"sigma": 9}), ("train", "seed", 7)):
        other = recipe.to_dict()
        other[section][key] = value
        write_weights(path, "coarse", tmp_path / "shards", recipe=other)
        with pytest.raises(DataError, match="this file holds a sweep with other settings"):
            sweep(path, SweepOptions(device="cpu", precision="fp32"))
    # a recipe that states only differences, as edited by hand or written by an earlier version
    few = {"data": {"synthesize": "noise"}}
    path = write_weights(tmp_path / "few.pt", "coarse", tmp_path / "shards", recipe=few)
    assert run(path, steps=(1,), out=tmp_path / "few").rows[0].trials == 1


def test_scores_of_other_streak_masks_are_not_mixed(tmp_path: Path) -> None:
    """The masks may have changed at the same path, or moved without a change."""
    for i in range(2):
        (tmp_path / "src").mkdir(exist_ok=True)
        save_rgb8(tmp_path / "src" / f"{i}.png", photo(i, 40, 40))
    masks = tmp_path / "masks"
    masks.mkdir()
    mask = np.repeat(photo(2, 40, 40)[..., :1], 3, axis=2)
    save_rgb8(masks / "0.png", mask)
    how = Synthesis("rain", {}, None, store=False)
    prepare(PrepareOptions(tmp_path / "src", tmp_path / "shards", val=1, synthesize=how)).run()
    recipe = Recipe(network=NETWORK)
    recipe.data.synthesize, recipe.data.streaks = "rain", str(masks)
    path = write_weights(tmp_path / "c.pt", "coarse", tmp_path / "shards", recipe=recipe.to_dict())
    run(path)
    masks.rename(tmp_path / "moved")
    recipe.data.streaks = str(tmp_path / "moved")
    write_weights(path, "coarse", tmp_path / "shards", recipe=recipe.to_dict())
    assert run(path).calls_spent == 0
    save_rgb8(tmp_path / "moved" / "0.png", mask // 2)
    with pytest.raises(DataError, match="this file holds a sweep with other settings") as error:
        run(path)
    assert error.value.details[0].startswith("degradation: ")


def test_scores_with_other_settings_are_not_mixed(coarse: Path, tmp_path: Path) -> None:
    run(coarse, steps=(1,), images=1, stamp=False)
    settings = json.loads((tmp_path / "sweep.json").read_text())["settings"]
    assert settings["device"] == "cpu"
    entries = [Entry("0", 17, 22)]
    header = ShardHeader("val", "{}", "input/target", "rain", "0.1")
    write_shard(tmp_path / "val-00000.h5", entries, pairs_of(entries), header)
    before = load_checkpoint(coarse).meta

    def differs(**changed: Any) -> str:
        with pytest.raises(DataError, match="this file holds a sweep with other settings") as error:
            sweep(coarse, SweepOptions(**{"device": "cpu", "precision": "fp32", **changed}))
        (line,) = error.value.details
        return line.split(":")[0]

    assert differs(data=tmp_path) == "data"
    assert differs(precision="bf16") == "precision"
    recipe = {**before.recipe, "sampling": {**before.recipe["sampling"], "eta": 0.5}}
    write_weights(coarse, "coarse", Path(before.data), recipe=recipe)
    assert differs() == "eta"
    # of pairs, nothing is made from the training's seed
    recipe = {**before.recipe, "train": {**before.recipe["train"], "seed": 7}}
    write_weights(coarse, "coarse", Path(before.data), recipe=recipe)
    sweep(coarse, SweepOptions(device="cpu", precision="fp32"))


def test_single_steps_are_shares_of_the_diffusion(shards: Path, tmp_path: Path) -> None:
    recipe = Recipe(network=NETWORK, diffusion=Diffusion(timesteps=100, beta_end=0.2))
    path, few = tmp_path / "c.pt", {"recipe": recipe.to_dict(), "diffusion": recipe.diffusion}
    write_weights(path, "coarse", shards, **few)
    subject = open_subject(path, protocol=None, device="cpu", precision="fp32")
    one = Sweep(SweepOptions(steps=(1,)), subject, open_validation_of(None, subject))
    assert list(one.schedules) == [(99,), (30,), (50,), (70,)]


# -- errors ------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_refused_before_any_restoration(
    coarse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the file itself, also if a link to it is given."""
    link = tmp_path / "links" / "coarse.pt"
    link.parent.mkdir()
    link.symlink_to(coarse)
    monkeypatch.setattr(os, "access", lambda path, *_: path != tmp_path)
    with pytest.raises(ResourceError, match="the checkpoint's folder is not writable") as error:
        sweep(link, SweepOptions(device="cpu"))
    assert error.value.where == str(link)


def test_a_link_to_the_weights_remains_a_link(coarse: Path, tmp_path: Path) -> None:
    link = tmp_path / "links" / "coarse.pt"
    link.parent.mkdir()
    link.symlink_to(coarse)
    run(link, steps=(1,), images=1)
    assert link.is_symlink()
    assert load_checkpoint(coarse).meta.grid_from == "sweep"


@pytest.mark.parametrize(("number", "shown"), [(4, "(0, 1, 2, 3)"), (5, "(0, 1, 2, 3, ...)")])
def test_what_a_stamp_would_remove_is_named_up_to_four(
    coarse: Path, monkeypatch: pytest.MonkeyPatch, number: int, shown: str
) -> None:
    monkeypatch.setattr(sweep_job, "besides_weights", lambda _: [str(i) for i in range(number)])
    with pytest.raises(UsageError, match=re.escape(shown)):
        sweep(coarse, SweepOptions(device="cpu"))


def test_a_sweep_stopped_before_its_first_score_names_no_file_to_resume_from(
    coarse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return iter(())

    monkeypatch.setattr(sweep_job, "restore_and_score", stopped)
    with pytest.raises(Interrupted, match="the sweep was stopped") as error:
        run(coarse)
    assert error.value.hint is None
    assert not (coarse.parent / "sweep.json").exists()


def test_another_sweep_is_not_overwritten(coarse: Path) -> None:
    run(coarse)
    with pytest.raises(DataError, match="this file holds a sweep with other settings") as error:
        run(coarse, protocol="rgb")
    assert any("protocol: 'derain' in the file, 'rgb' now" in line for line in error.value.details)
    assert run(coarse, protocol="rgb", overwrite=True).protocol == "rgb"


@pytest.mark.parametrize("weights", ["same", "other"])
def test_two_sweeps_in_one_folder_are_not_mixed(coarse: Path, shards: Path, weights: str) -> None:
    other = coarse
    if weights == "other":
        other = write_weights(coarse.with_name("other.pt"), "coarse", shards)
        state = {name: 2 * tensor for name, tensor in load_checkpoint(other).ema.items()}
        save_checkpoint(other, state, state, load_checkpoint(other).meta)
    options = SweepOptions(steps=(1, 2), device="cpu", precision="fp32")
    first, late = sweep(coarse, options), sweep(other, options)
    events = iter(first)
    next(events)
    with pytest.raises(ResourceError, match="another sweep is writing to this folder"):
        late.run()
    for _ in events:
        pass
    written = (coarse.parent / "sweep.json").read_bytes()
    assert first.result.calls_spent
    if weights == "same":
        # the file has changed since the sweep began
        assert sweep(other, options).run().calls_spent == 0
        return
    with pytest.raises(DataError, match="this file holds a sweep with other settings"):
        sweep(other, options)
    assert (coarse.parent / "sweep.json").read_bytes() == written


def test_a_sweep_reuses_the_scores_of_a_concurrent_one(coarse: Path, shards: Path) -> None:
    options = SweepOptions(steps=(1, 2), device="cpu", precision="fp32")
    late = sweep(coarse, options)
    run(coarse)
    late.run()
    assert late.result.calls_spent == 0


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "c2fdft-sweep"}', "\x00"])
def test_a_sweep_json_of_another_program_is_refused(coarse: Path, content: str) -> None:
    (coarse.parent / "sweep.json").write_text(content)
    with pytest.raises(DataError, match="not a sweep of this program"):
        run(coarse)
    assert run(coarse, overwrite=True).calls_spent


def test_infinite_scores_are_written_and_read_back(tmp_path: Path) -> None:
    log = SweepLog(tmp_path / "sweep.json", {"a": 1}, overwrite=False)
    equal, broken = Trial("equal", 0, (9,)), Trial("broken", 0, (9,))
    log.scores[equal] = Scored("equal", math.inf, 1.0, seconds=0.1)
    log.scores[broken] = Scored("broken", math.nan, math.nan, seconds=0.1)
    log.save({"complete": True})
    again = SweepLog(tmp_path / "sweep.json", {"a": 1}, overwrite=False)
    assert again.scores[equal].psnr == math.inf
    assert math.isnan(again.scores[broken].psnr)
    rows = make_table({(9,): "a"}, again.scores, ["equal", "broken"], [0], Rule("psnr"))
    assert not rows[0].chosen
    assert rows[0].as_json()["psnr"] is None


def test_weights_that_produce_no_finite_image_are_an_error(shards: Path, tmp_path: Path) -> None:
    path = write_weights(tmp_path / "huge.pt", "coarse", shards)
    checkpoint = load_checkpoint(path)
    checkpoint.ema["output.weight"][:] = 3e38  # the weights are finite, but their sums are not
    save_checkpoint(path, checkpoint.params, checkpoint.ema, checkpoint.meta)
    with pytest.raises(CheckpointError, match="NaN or infinite values with every schedule"):
        run(path)
    assert load_checkpoint(path).meta.grid_from == "recipe"
    assert json.loads((tmp_path / "sweep.json").read_text())["complete"] is True


def test_missing_data_are_an_error(coarse: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        run(tmp_path / "no.pt")
    with pytest.raises(DataError, match="no such folder of shards"):
        run(coarse, data=tmp_path / "no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no validation shards"):
        run(coarse, data=tmp_path / "empty")
    with pytest.raises(UsageError, match="--protocol must be"):
        run(coarse, protocol="best")
    with pytest.raises(UsageError, match="timesteps must"):
        run(coarse, starts=(1000,))
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="is a regular file"):
        run(coarse, out=tmp_path / "file" / "out")


def test_images_smaller_than_the_window_of_ssim(coarse: Path, tmp_path: Path) -> None:
    for side in ("input", "target"):
        (tmp_path / "src" / side).mkdir(parents=True)
        for i in range(2):
            save_rgb8(tmp_path / "src" / side / f"{i}.png", photo(i, 9, 30))
    prepare(PrepareOptions(source=tmp_path / "src", out=tmp_path / "small", val=1)).run()
    with pytest.raises(DataError, match="SSIM needs"):
        run(coarse, data=tmp_path / "small")


def test_options_have_the_documented_defaults() -> None:
    options = SweepOptions()
    assert options.steps == tuple(range(1, 11))
    assert replace(options, seeds=2).rule == Rule("within", 0.2)
