"""info: what a path holds, and files of other programs that must not be mistaken."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch

from c2fdft_cli.core.diffusion import spaced_timesteps
from c2fdft_cli.data.shards.format import Entry
from c2fdft_cli.engine.tools.info import describe
from c2fdft_cli.engine.train.folder import COLUMNS
from c2fdft_cli.engine.weights.checkpoint import (
    Meta,
    load_checkpoint,
    save_checkpoint,
    versions,
)
from c2fdft_cli.errors import CheckpointError, DataError
from c2fdft_cli.recipe.schema import Network
from tests.kit.shards import ENTRIES, HEADER, pairs_of, write_shard


@pytest.fixture
def shard(tmp_path):
    (tmp_path / "set").mkdir()
    write_shard(tmp_path / "set" / "train-00000.h5", ENTRIES, pairs_of(ENTRIES), HEADER)
    return tmp_path / "set" / "train-00000.h5"


def test_a_shard_shows_its_set_or_itself_under_another_name(tmp_path, shard):
    assert describe(shard) == describe(shard.parent)
    assert describe(shard)["train"]["images"] == len(ENTRIES)
    shutil.copy(shard, tmp_path / "copy.h5")
    assert describe(tmp_path / "copy.h5") == describe(shard)


@pytest.mark.parametrize("name", ["other.h5", "my-data.h5", "train-00001.h5"])
def test_another_hdf5_file_is_not_a_shard(tmp_path, shard, name):
    for folder in (shard.parent, tmp_path):
        with h5py.File(folder / name, "w") as file:
            file["a"] = [1, 2, 3]
        with pytest.raises(DataError, match="not a shard"):
            describe(folder / name)


def test_a_shard_with_a_suffix_in_upper_case_is_a_shard(shard):
    renamed = shard.rename(shard.with_suffix(".H5"))
    assert describe(renamed)["kind"] == "shards"


def test_a_folder_of_other_hdf5_files_holds_nothing(tmp_path):
    with h5py.File(tmp_path / "my-data.h5", "w") as file:
        file["a"] = [1, 2, 3]
    with pytest.raises(DataError, match="not a checkpoint, shard folder or run folder"):
        describe(tmp_path)


def test_metrics_of_another_program_are_not_a_run(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,loss\n0,1,0.5\n")
    with pytest.raises(DataError, match="not a checkpoint, shard folder or run folder"):
        describe(tmp_path)


def test_a_path_that_is_neither_file_nor_folder_is_refused(tmp_path):
    folder = tmp_path / "run"
    (folder / "metrics.csv").mkdir(parents=True)
    for path in (Path(os.devnull), folder):
        with pytest.raises(DataError, match="not a checkpoint, shard folder or run folder"):
            describe(path)


@pytest.mark.parametrize(
    ("name", "kind", "hint"),
    [
        ("mine.yaml", "a recipe", "c2fdft recipes show "),
        ("sweep.json", "a JSON document", "give the folder of the run"),
        ("metrics.CSV", "a table", "give the folder of the run"),
    ],
)
def test_a_text_file_of_the_program_is_named(tmp_path, name, kind, hint):
    (tmp_path / name).write_text("a: 1")
    with pytest.raises(DataError, match=f"this looks like {kind}, not a checkpoint") as caught:
        describe(tmp_path / name)
    assert str(caught.value.hint).startswith(hint)


def test_the_smallest_and_the_largest_image_are_chosen_by_area(tmp_path):
    sizes = [(40, 10), (20, 21), (9, 30)]
    entries = [Entry(f"{h}", h, w) for h, w in sizes]
    write_shard(tmp_path / "train-00000.h5", entries, pairs_of(entries), HEADER)
    found = describe(tmp_path)["train"]
    assert (found["smallest"], found["largest"]) == ([9, 30], [20, 21])


def test_only_checkpoints_of_a_run_are_listed(tmp_path):
    (tmp_path / "metrics.csv").write_text(",".join(COLUMNS) + "\n")
    (tmp_path / "checkpoints").mkdir()
    for name in ("fine.pt", "best.pt", "state-previous.pt", ".0123456789abcdef.tmp.pt"):
        (tmp_path / name).touch()
    (tmp_path / "checkpoints" / "step-00000010.pt").touch()
    assert describe(tmp_path)["checkpoints"] == ["best.pt", "fine.pt", "step-00000010.pt"]


def test_weights_that_do_not_fit_their_network_are_refused(tmp_path, tiny_net):
    """Also those of a training, whose file names its network."""
    state, path = tiny_net().state_dict(), tmp_path / "a.pt"
    save_checkpoint(path, state, state, Meta(Network(dim=16, blocks=[1, 1, 1, 1]), stage="fine"))
    with pytest.raises(CheckpointError, match=r"a\.pt: the weights do not fit the network"):
        describe(path)


def test_shards_of_clean_images_hold_no_pairs(tmp_path):
    entries = [Entry("a", 8, 8)]
    clean = [(None, gt) for _, gt in pairs_of(entries)]
    write_shard(tmp_path / "train-00000.h5", entries, clean, HEADER, has_lq=False)
    assert describe(tmp_path)["train"]["pairs"] is False


def test_an_official_checkpoint_shows_what_it_has(tmp_path, tiny_net):
    state, path = tiny_net().state_dict(), tmp_path / "a.pt"
    torch.save({"params": state}, path)
    plain = describe(path)
    assert plain["grid"] == spaced_timesteps(4)
    assert all(plain.values())
    assert {"step", "grid_from", "data", "metrics", "versions"}.isdisjoint(plain)
    meta = load_checkpoint(path).meta
    save_checkpoint(path, state, state, replace(meta, grid=[500], grid_from="sweep"))
    added = {"grid_from": "sweep", "versions": versions()}
    assert describe(path) == {**plain, "grid": [500], **added}
