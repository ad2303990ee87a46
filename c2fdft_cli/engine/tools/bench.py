"""Measures how fast the parts run on this machine, compared with its rate of matrix products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from c2fdft_cli.core.attention import Attention
from c2fdft_cli.core.diffusion import spaced_timesteps
from c2fdft_cli.core.network import DFT, Resample
from c2fdft_cli.data.batches.batch import Batch
from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.engine.sampling.executor import Executor
from c2fdft_cli.engine.sampling.pairs import degradation
from c2fdft_cli.engine.sampling.sampler import Sampler
from c2fdft_cli.engine.tools.bench_options import BenchOptions
from c2fdft_cli.engine.train.batches import make_loader
from c2fdft_cli.engine.train.step.objective import Objective
from c2fdft_cli.engine.train.step.stepper import Stepper
from c2fdft_cli.engine.weights.build import alpha_bar_of_recipe, make_network
from c2fdft_cli.errors import DataError, UsageError
from c2fdft_cli.execution.compiling import compile_in_place
from c2fdft_cli.execution.cuda.recorded import records
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.fused.choose import busy_seconds
from c2fdft_cli.execution.memory import peak_bytes
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.progress import Job
from c2fdft_cli.recipe.schema import Network, Recipe
from c2fdft_cli.words import many

GEMM_SIDE, CUDA_GEMM_SIDE = 2048, 8192


@dataclass(frozen=True)
class BenchResult:
    """The measurements of one part.

    part, size, batch: what was timed: `BenchOptions.part`, side in px, images per batch.
    compiled: whether `torch.compile` was requested.
    executor: how the network was run.
    seconds: median time of a run; `fastest` and `slowest` are the extremes.
    images_per_second: batch / seconds.
    gmac: multiply-adds of a run in units of 1e9 (a training step counts as three forward passes).
    tflops: 2 * MAC / seconds in units of 1e12.
    gemm_tflops: the rate of a 2048^3 matrix product, on CUDA 8192^3, in the same type, timed
        between the runs.
    of_gemm: tflops / gemm_tflops.
    peak_memory: peak bytes of the device's allocator, or of this process on a CPU.
    """

    part: str
    size: int
    batch: int
    device: str
    precision: str
    compiled: bool
    executor: str
    seconds: float
    fastest: float
    slowest: float
    images_per_second: float
    gmac: float | None
    tflops: float | None
    gemm_tflops: float | None
    of_gemm: float | None
    peak_memory: int


def network_macs(network: Network, height: int, width: int) -> int:
    """Count the multiply-adds of a forward pass, as the paper does (116.3e9 at 256x256).

    Counted at each pixel: the weights of each convolution, and 2 c d for a block's q k^T and its
    product with v (d channels in a head).
    """
    with torch.device("meta"):
        net = make_network(network)
    total, shrink = 0, 1
    # in the order in which they run, because resampling changes the number of pixels after it
    for part in net.children():
        pixels = height * width // shrink
        for module in part.modules():
            if isinstance(module, torch.nn.Conv2d):
                total += pixels * module.weight.numel()
            elif isinstance(module, Attention):
                c = module.project_out.out_channels
                total += pixels * 2 * c * (c // module.heads)
        if isinstance(part, Resample):
            halves = part.conv.out_channels < part.conv.in_channels
            shrink = shrink * 4 if halves else shrink // 4
    return total


def bench(options: BenchOptions, recipe: Recipe, runtime: Runtime) -> Job[float, BenchResult]:
    """Make the job that times one part; each event is the seconds of one run.

    Args:
        options: which part to time, with which sizes.
        recipe: provides the network; for "loader" and "train-step" also the settings of training.
        runtime: device and precision.

    Raises:
        UsageError: "restore" with more sampling steps than the schedule has timesteps.
        DataError: "loader" without a folder of shards.
    """
    total = recipe.diffusion.timesteps
    if options.part == "restore" and options.steps > total:
        raise UsageError(f"--steps must be 1 to {total}, got {options.steps}")
    if options.part == "loader" and options.data is None:
        raise DataError(
            "--data is missing", hint="give the shard folder that `c2fdft prepare` wrote"
        )
    return Job(
        _bench(options, recipe, runtime),
        total=_warm_ups(options, runtime) + options.repeats,
        title=options.part,
        unit="run",
    )


def _bench(
    options: BenchOptions, recipe: Recipe, runtime: Runtime
) -> Generator[float, None, BenchResult]:
    run, executor, calls = _part(options, recipe, runtime)
    computes = options.part != "loader"
    times: list[float] = []
    rates: list[float] = []
    peak = 0
    warm_ups = _warm_ups(options, runtime)
    for number in range(warm_ups + options.repeats):
        seconds = _seconds_of(run, runtime)
        if number >= warm_ups:
            times.append(seconds)
            if not rates:  # before the first product, which needs memory too
                peak = peak_bytes(runtime.device)
            if computes:
                # between the runs, so that a lower clock or another program slows both alike
                rates.append(gemm_tflops(runtime))
        yield seconds
    median = statistics.median(times)
    macs = network_macs(recipe.network, options.size, options.size) * options.batch * calls
    tflops = 2 * macs / median / 1e12 if computes else None
    of_machine = statistics.median(rates) if rates else None
    return BenchResult(
        part=options.part,
        size=options.size,
        batch=options.batch,
        device=_device_name(runtime.device),
        precision=runtime.precision,
        compiled=options.compile,
        executor=executor,
        seconds=median,
        fastest=min(times),
        slowest=max(times),
        images_per_second=options.batch / median,
        gmac=macs / 1e9 if computes else None,
        tflops=tflops,
        gemm_tflops=of_machine,
        of_gemm=tflops / of_machine if tflops and of_machine else None,
        peak_memory=peak,
    )


def _warm_ups(options: BenchOptions, runtime: Runtime) -> int:
    """Return the number of warm-up runs: the second is needed to record a CUDA graph."""
    return 2 if options.part != "loader" and records(runtime.device) else 1


def _part(
    options: BenchOptions, recipe: Recipe, runtime: Runtime
) -> tuple[Callable[[], object], str, int]:
    """Return the function to time, how it runs the network, and its number of forward passes."""
    if options.part == "loader":
        return _loader(options, recipe, runtime), "loader", 0
    net = make_network(recipe.network).to(runtime.device)
    if options.part == "train-step":
        return _train_step(options, recipe, net, runtime), "whole", 3
    if options.part == "restore":
        return _restore(options, recipe, net, runtime)
    return _forward(options, net.eval(), runtime)


def _forward(
    options: BenchOptions, net: DFT, runtime: Runtime
) -> tuple[Callable[[], object], str, int]:
    strips = StripNetwork(net, dtype=runtime.dtype, compile=options.compile)
    shape = (options.batch, 6, options.size, options.size)
    x = torch.randn(shape, device=runtime.device)
    t = torch.full((1,), 500.0, device=x.device).expand(options.batch)

    def run() -> object:
        with torch.inference_mode():
            return strips(x, t)

    return run, "strips", 1


def _restore(
    options: BenchOptions, recipe: Recipe, net: DFT, runtime: Runtime
) -> tuple[Callable[[], object], str, int]:
    timesteps = spaced_timesteps(options.steps, total=recipe.diffusion.timesteps)
    sampler = Sampler(alpha_bar_of_recipe(recipe.diffusion), timesteps)
    strips = StripNetwork(net.eval(), dtype=runtime.dtype, compile=options.compile)
    executor = Executor(strips, sampler, runtime)
    lq = torch.rand(options.batch, 3, options.size, options.size)
    names = [str(i) for i in range(options.batch)]
    return (lambda: executor(lq, names)), "as restore decides", options.steps


def _train_step(
    options: BenchOptions, recipe: Recipe, net: DFT, runtime: Runtime
) -> Callable[[], object]:
    compile_in_place(net, "on" if options.compile else "off", runtime)
    alpha_bar = alpha_bar_of_recipe(recipe.diffusion).to(runtime.device)
    stepper = Stepper(Objective(net, alpha_bar, None), recipe.train, runtime)
    batch = random_batch(options.batch, options.size, recipe.diffusion.timesteps)
    return lambda: stepper.step(batch, 1.0, 1e-5, options.batch)


def random_batch(rows: int, size: int, total: int) -> Batch:
    """Make a training batch of random pixels; degraded and clean images are the same."""
    shape = (rows, 3, size, size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    return Batch(1, pixels, pixels, torch.randn(shape), torch.randint(0, total, (rows,)))


def _loader(options: BenchOptions, recipe: Recipe, runtime: Runtime) -> Callable[[], object]:
    """Return a function that loads the next batch of `batch` patches of `size` px."""
    # as many iterations as there will be runs: the recipe may have fewer
    runs = _warm_ups(options, runtime) + options.repeats
    size, rows = [options.size], [options.batch]
    stage = replace(recipe.coarse, iterations=runs, patches=size, batches=rows)
    shards = ShardSet.open(options.data or Path(), "train")
    # without prefetching, which would time the queue instead of the loading
    recipe = replace(recipe, data=replace(recipe.data, workers=recipe.data.workers or 0))
    degrade = degradation(recipe.data)
    batches = iter(make_loader(recipe, stage, shards, degrade, 1, runtime, prefetch=0))
    return lambda: next(batches)


def _seconds_of(run: Callable[[], object], runtime: Runtime) -> float:
    """Return the seconds of one run, including the work that it queued on the device."""
    _wait(runtime)
    start = time.perf_counter()
    run()
    _wait(runtime)
    return time.perf_counter() - start


def _wait(runtime: Runtime) -> None:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
    elif runtime.device.type == "mps":
        torch.mps.synchronize()


def gemm_tflops(runtime: Runtime) -> float:
    """Measure the rate of a large matrix product, in 1e12 operations per second."""
    on_cuda = runtime.device.type == "cuda"
    n = CUDA_GEMM_SIDE if on_cuda else GEMM_SIDE
    # Random values: multiplying equal ones draws less power, so that a GPU's clock is higher.
    a = torch.randn((n, n), device=runtime.device).to(runtime.dtype)

    def run() -> Tensor:
        return a @ a

    with torch.cuda.device_of(a):  # type: ignore[no-untyped-call]
        seconds = [busy_seconds(run) if on_cuda else _seconds_of(run, runtime) for _ in range(2)]
    return 2 * n**3 / min(seconds) / 1e12


def _device_name(device: torch.device) -> str:
    """Return a readable name of the device: the GPU's model, or "cpu, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {many(torch.get_num_threads(), 'thread')}"
