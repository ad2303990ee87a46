"""How many processes read batches, and how rows are distributed."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from c2fdft_cli.data.batches.batch import Batch
from c2fdft_cli.data.batches.loader import PatchLoader
from c2fdft_cli.data.shards.format import Entry
from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.engine.sampling.pairs import degradation, open_validation
from c2fdft_cli.engine.train import batches
from c2fdft_cli.engine.train.batches import (
    free_shared_memory,
    make_loader,
    rank_rows,
    rank_share,
    worker_count,
)
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.recipe.files import load_recipe
from c2fdft_cli.recipe.schema import Data, Recipe
from c2fdft_cli.vocabulary import DEGRADATIONS
from tests.kit.shards import HEADER, pairs_of, write_shard

CPU, GPU = torch.device("cpu"), torch.device("cuda")
RAIN, GIB = Data(synthesize="rain"), 1 << 30


@pytest.mark.parametrize(
    ("data", "device", "processors", "shared_bytes", "workers"),
    [
        (RAIN, GPU, 1, GIB, 1),
        (RAIN, GPU, 4, GIB, 3),
        (RAIN, GPU, 64, math.inf, 8),
        (Data(), GPU, 1, GIB, 2),
        (Data(), GPU, 64, GIB, 2),
        # without shared memory a thread reads the batches
        (RAIN, GPU, 64, 64 << 20, 0),
        (Data(workers=3), GPU, 64, 64 << 20, 3),
        # the recipe's number is used; on a CPU a thread reads the batches
        (Data(), CPU, 64, GIB, 0),
        (RAIN, CPU, 64, GIB, 0),
        (Data(workers=0, synthesize="rain"), GPU, 64, GIB, 0),
        (Data(workers=5), CPU, 64, GIB, 5),
    ],
)
def test_the_number_of_data_workers(
    data: Data, device: torch.device, processors: int, shared_bytes: float, workers: int
) -> None:
    assert worker_count(data, device, processors, shared_bytes) == workers


def test_the_shared_memory_of_this_machine_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(batches, "_SHARED_MEMORY", str(tmp_path))
    monkeypatch.setattr(batches, "disk_usage", lambda path: SimpleNamespace(free=len(path)))
    assert free_shared_memory() == len(str(tmp_path))
    monkeypatch.setattr(batches, "_SHARED_MEMORY", str(tmp_path / "none"))
    assert free_shared_memory() == math.inf


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_rows_are_distributed_to_all_processes(batch: int, world: int) -> None:
    """Each row is used once; a process without any gets one of weight zero."""
    ranks = [Runtime(CPU, rank=rank, world=world) for rank in range(world)]
    dealt: list[int] = []
    for runtime in ranks:
        lo, hi = rank_rows(runtime, batch)
        assert 0 <= lo < hi <= batch
        if rank_share(runtime, batch):
            assert rank_share(runtime, batch) == (hi - lo) / batch
            dealt += range(lo, hi)
        else:
            assert hi - lo == 1
    assert dealt == list(range(batch))


def loader(recipe: Recipe, shards: ShardSet) -> PatchLoader:
    degrade = degradation(recipe.data)
    return make_loader(recipe, recipe.coarse, shards, degrade, 1, Runtime(CPU))


def test_training_patches_may_have_unclipped_noise_and_validation_images_not(
    tmp_path: Path,
) -> None:
    """A share of unclipped noise, as in benchmarks, is for training; pictures have 8 bits."""
    entries = [Entry("a", 40, 40), Entry("b", 40, 41)]
    clean = [(None, np.zeros((e.height, e.width, 3), np.uint8)) for e in entries]
    for split in ("train", "val"):
        header = replace(HEADER, split=split)
        write_shard(tmp_path / f"{split}-00000.h5", entries, clean, header, has_lq=False)
    shards, seen = ShardSet.open(tmp_path), []
    for kind, share in (("gaussian", 0), ("gaussian", 1), ("raw", 1)):
        noise = f"data.synthesis={{kind: {kind}, sigma: 30, unclipped_share: {share}}}"
        options = ["data.synthesize=noise", noise, "coarse.iterations=2", "coarse.patches=[32]"]
        recipe = load_recipe("tiny", [*options, "coarse.batches=[2]"])
        batch = next(iter(loader(recipe, shards)))
        seen.append((batch.lq.dtype, bool((batch.lq < 0).any())))
        pairs = open_validation(tmp_path, recipe)
        assert pairs is not None
        assert pairs.pair(0).lq.dtype == np.uint8
    assert seen == [(torch.uint8, False), (torch.int16, True), (torch.uint8, False)]


@pytest.fixture
def two_pictures(tmp_path: Path) -> Path:
    entries = [Entry("a", 50, 70), Entry("b", 40, 41)]
    write_shard(tmp_path / "train-00000.h5", entries, pairs_of(entries), HEADER)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        DEGRADATIONS[0],
        *(pytest.param(kind, marks=pytest.mark.acceptance) for kind in DEGRADATIONS[1:]),
    ],
)
def test_workers_that_do_not_fork_make_the_same_batches(
    two_pictures: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Processes are spawned on macOS and Windows."""
    monkeypatch.setattr("c2fdft_cli.data.batches.loader._START_METHOD", "spawn")
    threaded, spawned = (list(synthetic(two_pictures, kind, workers)) for workers in (0, 1))
    assert_equal(threaded, spawned)


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_what_such_workers_receive_makes_the_same_batches(two_pictures: Path, kind: str) -> None:
    """It is pickled, and a new process, which the test above starts, takes seconds."""
    batches, received = (synthetic(two_pictures, kind, 0) for _ in range(2))
    received._source = pickle.loads(pickle.dumps(received._source))
    assert_equal(list(batches), list(received))


def synthetic(folder: Path, kind: str, workers: int) -> PatchLoader:
    """A loader of two batches with synthetic degradations of two pictures."""
    short = ["coarse.iterations=2", "coarse.patches=[32]", "coarse.batches=[2]"]
    recipe = load_recipe("tiny", [f"data.synthesize={kind}", f"data.workers={workers}", *short])
    return loader(recipe, ShardSet.open(folder))


def assert_equal(some: list[Batch], others: list[Batch]) -> None:
    assert len(some) == 2
    for one, other in zip(some, others, strict=True):
        for name in ("lq", "gt", "noise", "times"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_batches_are_made_as_the_recipe_states(two_pictures: Path) -> None:
    def first(*words: str) -> Batch:
        short = ["coarse.iterations=2", "coarse.patches=[32]", "coarse.batches=[8]", *words]
        recipe = load_recipe("tiny", ["data.synthesize=noise", *short])
        return next(iter(loader(recipe, ShardSet.open(two_pictures))))

    plain = first()
    assert plain.lq2 is None
    assert first("coarse.mixup_beta=1", "train.seed=5").lq2 is not None  # in every second batch
    assert not torch.equal(first("train.seed=7").noise, plain.noise)
    assert not torch.equal(first("data.line_patterns=1").gt, plain.gt)
    assert plain.times.max() >= 100
    assert first("diffusion.timesteps=100", "sampling.grid=[50]").times.max() < 100
