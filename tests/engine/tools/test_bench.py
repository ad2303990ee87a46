"""bench: it times what it reports to have timed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from c2fdft_cli.engine.tools import bench as module
from c2fdft_cli.engine.tools.bench_options import BenchOptions
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.recipe.files import load_recipe
from c2fdft_cli.recipe.schema import Network

RECIPE = load_recipe("tiny", ["network.dim=8", "network.blocks=[1,1,1,1]"])


@pytest.mark.parametrize("part", ["forward", "restore"])
def test_a_row_is_compiled_if_it_says_so(part, monkeypatch):
    asked = []

    def strips(net, *, compile=False, **options):
        asked.append(compile)
        return StripNetwork(net, **options)

    monkeypatch.setattr(module, "StripNetwork", strips)
    steps = {"steps": 1} if part == "restore" else {}
    timed = partial(BenchOptions, part, size=16, repeats=1, **steps)
    for wanted in (False, True):
        job = module.bench(timed(compile=wanted), RECIPE, Runtime(torch.device("cpu")))
        assert job.run().compiled == asked.pop() == wanted


@pytest.mark.parametrize(
    ("part", "recorded", "warm_ups"),
    [("forward", False, 1), ("forward", True, 2), ("loader", True, 1)],
)
def test_the_run_that_records_is_not_timed(part, recorded, warm_ups, monkeypatch):
    durations = iter([9.0] * warm_ups + [1.0, 2.0, 3.0])
    monkeypatch.setattr(module, "records", lambda _: recorded)
    monkeypatch.setattr(module, "_seconds_of", lambda *_: next(durations))
    monkeypatch.setattr(module, "gemm_tflops", lambda _: 1.0)
    monkeypatch.setattr(module, "_part", lambda *_: (None, "", 1))
    options = BenchOptions(part, size=16, repeats=3, data=Path() if part == "loader" else None)
    job = module.bench(options, RECIPE, Runtime(torch.device("cpu")))
    assert job.total == warm_ups + 3
    result = job.run()
    assert (result.fastest, result.seconds, result.slowest) == (1.0, 2.0, 3.0)
    assert next(durations, None) is None


def test_a_gpu_is_compared_with_a_product_that_keeps_it_busy(monkeypatch):
    """Of 8192^3, timed on the GPU: the launch of a small product takes as long as the product."""
    factors, randn = [], torch.randn

    def made(size, device):
        factors.append((size, device.type))
        return randn(8, 8)

    monkeypatch.setattr(torch, "randn", made)
    monkeypatch.setattr(module, "busy_seconds", lambda run: run().numel() * 0 + 2.0)
    assert module.gemm_tflops(Runtime(torch.device("cuda"))) == 8192**3 / 1e12
    assert factors == [((8192, 8192), "cuda")]


def test_the_product_s_memory_is_not_that_of_the_run(monkeypatch):
    used = [1]
    monkeypatch.setattr(module, "peak_bytes", lambda _: used[0])
    monkeypatch.setattr(module, "gemm_tflops", lambda _: used.__setitem__(0, 2) or 1.0)
    options = BenchOptions("forward", size=16, repeats=2)
    assert module.bench(options, RECIPE, Runtime(torch.device("cpu"))).run().peak_memory == 1


@pytest.mark.parametrize(("part", "passes"), [("forward", 1), ("train-step", 3), ("restore", 4)])
def test_the_work_of_all_images_and_passes_counts(part, passes, monkeypatch):
    monkeypatch.setattr(module, "_seconds_of", lambda *_: 0.5)
    monkeypatch.setattr(module, "gemm_tflops", lambda _: 2.0)
    monkeypatch.setattr(module, "_train_step", lambda *_: None)
    options = BenchOptions(part, size=16, batch=3, repeats=1)
    result = module.bench(options, RECIPE, Runtime(torch.device("cpu"))).run()
    macs = 3 * passes * module.network_macs(RECIPE.network, 16, 16)
    assert result.gmac == pytest.approx(macs / 1e9)
    assert result.tflops == pytest.approx(2 * macs / 0.5 / 1e12)
    assert result.of_gemm == pytest.approx(result.tflops / 2)
    assert result.images_per_second == 6


def test_more_batches_are_timed_than_the_recipe_has_iterations(shard_folder):
    recipe = load_recipe("tiny", ["coarse.iterations=2"])
    options = BenchOptions("loader", size=16, repeats=4, data=shard_folder)
    job = module.bench(options, recipe, Runtime(torch.device("cpu")))
    assert len(list(job)) == 5


def test_multiply_adds_are_those_of_the_paper():
    assert module.network_macs(Network(), 256, 256) == pytest.approx(116.3e9, rel=5e-4)
    assert module.network_macs(Network(), 512, 256) == 2 * module.network_macs(Network(), 256, 256)
