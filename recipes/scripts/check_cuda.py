"""Check that the program computes correctly on this GPU, and time it, in at most 31 minutes.

    python recipes/scripts/check_cuda.py OUT [--stages env,ops,kernels,net,grad,memory,cli,restore,train,compiled,ranks]

Each stage runs in its own process (after a CUDA error a process is unusable) with a time limit, and
appends JSON lines to OUT/cuda.jsonl. At the end OUT/cuda.md holds two tables, of checks and of
times, for docs/performance.md. The exit code is 1 if a check failed. Nothing is downloaded. If a
command may take at most ten minutes, split the stages: `env,ops,kernels`,
`net,grad,memory`, `cli,restore,train` and `compiled,ranks`. `--device cpu --quick` tests the script
without a GPU.
"""  # noqa: E501

from __future__ import annotations

import argparse
import copy
import csv
import datetime
import gc
import importlib.util
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from c2fdft_cli.core.block import Block
from c2fdft_cli.core.diffusion import alpha_bar_of, beta_schedule, spaced_timesteps
from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.sampling.executor import Executor
from c2fdft_cli.engine.sampling.sampler import Sampler
from c2fdft_cli.engine.tools.bench import network_macs, random_batch
from c2fdft_cli.engine.train.step.memory import kernels_in_use, step_bytes, weight_bytes
from c2fdft_cli.engine.train.step.objective import Objective
from c2fdft_cli.engine.train.step.stepper import Stepper
from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
from c2fdft_cli.engine.weights.choose import choose_weights
from c2fdft_cli.errors import ResourceError
from c2fdft_cli.execution.compiling import allow_failures, compile_in_place, functions_given_up
from c2fdft_cli.execution.cuda import recorded as recording
from c2fdft_cli.execution.cuda.cards import AMPERE, WIDEST_ON_CHIP, is_served, lay_out_weights
from c2fdft_cli.execution.device import Runtime, make_runtime
from c2fdft_cli.execution.fused import choose
from c2fdft_cli.execution.fused.training import try_feed_forward, try_norm
from c2fdft_cli.execution.inference_memory import strip_bytes
from c2fdft_cli.execution.kernels import sums_of_pixels
from c2fdft_cli.execution.memory import is_out_of_memory, peak_bytes, release_cached_memory
from c2fdft_cli.execution.prepared import PreparedBlock
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.recipe.schema import FineStage, Network, Stage, Train
from c2fdft_cli.vocabulary import Recompute

ALLOWED = {"fp32": 2e-5, "tf32": 2e-3, "fp16": 4e-3, "bf16": 2e-2}
"""Largest relative errors, by precision, against float64 or float32 on the CPU."""
LEAST_COSINE = {"fp32": 0.9999, "tf32": 0.999, "fp16": 0.995, "bf16": 0.98}
ALPHA_BAR = alpha_bar_of(beta_schedule())
DERAIN = Network(dim=24, blocks=[1, 2, 2, 3])
"""The network of the packaged weights `derain`."""
QUICK = Network(dim=16, blocks=[1, 1, 1, 1])
RUN = [sys.executable, "-m", "c2fdft_cli"]
Kind = Recompute | None
"""The training stage: coarse if None, else fine with this value of `recompute`."""
TIMED: tuple[Kind, ...] = (None, "none", "call")


@dataclass(frozen=True)
class Check:
    """The run of one stage: its device and sizes, and where its results are written.

    Args:
        folder: OUT.
        stage: name of the stage.
        device: "cuda" or "cpu".
        quick: use tiny sizes.
    """

    folder: Path
    stage: str
    device: str
    quick: bool

    @property
    def on_cuda(self) -> bool:
        """Whether the stage runs on a GPU."""
        return self.device == "cuda"

    def network(self) -> Network:
        """Return the official network, or a tiny one if quick."""
        return QUICK if self.quick else Network()

    def precisions(self) -> list[str]:
        """Return the precisions of the device, float32 first and half precision last."""
        if not self.on_cuda:
            return ["fp32", "bf16"]
        newer = torch.cuda.get_device_capability() >= AMPERE
        return ["fp32", "tf32", "fp16", "bf16"] if newer else ["fp32", "fp16"]

    def runtime(self, precision: str) -> Runtime:
        """Return the device with a precision."""
        return make_runtime(self.device, precision)

    def write(self, **facts: object) -> None:
        """Append a result to the file, and print it."""
        line = json.dumps({"stage": self.stage, **facts})
        with (self.folder / "cuda.jsonl").open("a") as file:
            file.write(line + "\n")
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def expect(self, name: str, good: bool, **facts: object) -> None:
        """Write a check and whether it holds."""
        self.write(check=name, good=bool(good), **facts)

    def time(self, name: str, seconds: float, **facts: object) -> None:
        """Write a time."""
        self.write(time=name, ms=round(seconds * 1e3, 4), **facts)

    @contextmanager
    def trial(self, name: str) -> Iterator[Callable[..., None]]:
        """Turn an exception within the block into a failed check, so that the stage continues.

        Yields `expect` for a check of this name.
        """
        try:
            yield partial(self.expect, name)
        except Exception as error:  # any exception is a failed check
            text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            self.expect(name, False, error=text)


def main() -> int:
    """Run the requested stages, each in a child process, or in such a child its one stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to test the script itself"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if args.stage:
        check = Check(args.out, args.stage, args.device, args.quick)
        with check.trial("stage"):
            STAGES[args.stage][0](check)
        return 0
    (args.out / "cuda.jsonl").touch()
    for stage in args.stages.split(","):
        _run_stage(Check(args.out, stage, args.device, args.quick))
    return _write_tables(args.out)


def _run_stage(check: Check) -> None:
    """Run one stage in its own process, which is killed with its children after a time limit."""
    words = [sys.executable, __file__, check.folder, "--stage", check.stage]
    interpreted = {} if check.on_cuda or check.stage != "kernels" else {"TRITON_INTERPRET": "1"}
    words += ["--device", check.device, *["--quick"] * check.quick]
    limit = STAGES[check.stage][1] * (1 if check.on_cuda else 5)
    began = time.monotonic()
    process = subprocess.Popen(  # noqa: S603
        list(map(str, words)), start_new_session=True, env={**os.environ, **interpreted}
    )
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(limit)
    finally:  # if this script is stopped, no stage may keep running and disturb later timings
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    code = process.returncode
    check.expect("stage ended by itself", code == 0, code=code, limit=limit)
    check.time("whole stage", time.monotonic() - began)


def _write_tables(folder: Path) -> int:
    """Write OUT/cuda.md from the results; return 1 if a check failed, else 0."""
    rows = [json.loads(line) for line in (folder / "cuda.jsonl").read_text().splitlines()]
    checks, times = ([row for row in rows if kind in row] for kind in ("check", "time"))
    facts: dict[str, Any] = next((row for row in rows if "torch" in row), {})
    lines = [_more(facts, ("stage",)), "", "| stage | check | | |", "|---|---|---|---|"]
    for row in checks:
        state = "ok" if row["good"] else "FAILED"
        more = _more(row, ("stage", "check", "good"))
        lines.append(f"| {row['stage']} | {row['check']} | {state} | {more} |")
    lines += ["", "| stage | what | ms | |", "|---|---|---|---|"]
    for row in times:
        more = _more(row, ("stage", "time", "ms"))
        lines.append(f"| {row['stage']} | {row['time']} | {row['ms']} | {more} |")
    (folder / "cuda.md").write_text("\n".join(lines) + "\n")
    return 0 if all(row["good"] for row in checks) else 1


def _more(row: dict[str, Any], skip: tuple[str, ...]) -> str:
    return ", ".join(f"{key} {value}" for key, value in row.items() if key not in skip)


# --- measuring ---


def seconds_of(run: Callable[[], object], check: Check, most: int = 50) -> float:
    """Return the median seconds of a run; on a GPU by events, after two runs that warm up."""
    if not check.on_cuda:
        run()
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    times: list[float] = []
    while sum(times) < 0.3 and len(times) < most:
        times.append(choose.busy_seconds(run))
    return statistics.median(times)


def relative(a: Tensor, b: Tensor) -> float:
    """Return the norm of a - b divided by the norm of b."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def random_network(network: Network, device: torch.device | None = None) -> DFT:
    """Make a network with the same random weights each time, in training's memory layout."""
    torch.manual_seed(0)
    net = make_network(network).to(device or torch.device("cpu"))
    if net.output.weight.is_cuda:
        lay_out_weights(net)
    return net


def make_stepper(net: DFT, runtime: Runtime, kind: Kind = None) -> Stepper:
    """Make a stepper of one of the stages."""
    stage = None if kind is None else (FineStage(recompute=kind), spaced_timesteps(4))
    return Stepper(Objective(net, ALPHA_BAR.to(runtime.device), stage), Train(), runtime)


def profile_of(run: Callable[[], object], path: Path) -> float:
    """Return the share of time in which the GPU is busy; write its kernels, by time, to a file."""
    run()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        run()
        torch.cuda.synchronize()
    wall = time.perf_counter() - begin
    kernels = [event for event in seen.events() or [] if event.device_type.name == "CUDA"]
    busy: float = sum(event.device_time_total for event in kernels) / 1e6
    table = seen.key_averages().table(sort_by="self_cuda_time_total", row_limit=40)
    path.write_text(f"{len(kernels)} kernels, busy {busy:.4f} s of {wall:.4f} s\n{table}")
    return busy / wall


# --- stages ---


def env(check: Check) -> None:
    """Record versions and hardware, and the card's limits: copies, products, launches."""
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if not check.on_cuda:
        check.write(**facts, threads=torch.get_num_threads())
        return
    capability = torch.cuda.get_device_capability()
    check.write(
        **facts,
        gpu=torch.cuda.get_device_name(),
        capability="{}.{}".format(*capability),
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        gpus=torch.cuda.device_count(),
        gib=round(torch.cuda.mem_get_info()[1] / 2**30, 1),
    )
    architectures = torch.cuda.get_arch_list()
    known = is_served(capability, architectures)
    check.expect("torch is built for this GPU", known, architectures=" ".join(architectures))
    _time_memory(check)
    for name in check.precisions():
        dtype = check.runtime(name).dtype
        x, y = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
        took = seconds_of(partial(torch.matmul, x, y), check)
        check.time(f"product 8192^3 {name}", took, tflops=round(2 * 8192**3 / took / 1e12))
    _time_launches(check)


def _time_memory(check: Check) -> None:
    a = torch.empty(1 << 28, device="cuda").normal_()
    b = torch.empty_like(a)
    took = seconds_of(lambda: b.copy_(a), check)
    check.time("copy of 1 GiB", took, gb_s=round(2 * a.numel() * 4 / took / 1e9))
    for pinned in (False, True):
        host = torch.empty(1 << 26, pin_memory=pinned)
        upload = partial(a[: host.numel()].copy_, host, non_blocking=True)
        took = seconds_of(upload, check, most=10)
        rate = round(host.numel() * 4 / took / 1e9, 1)
        check.time(f"host to GPU, {'pinned' if pinned else 'pageable'}", took, gb_s=rate)


def _time_launches(check: Check) -> None:
    one = torch.zeros(1, device="cuda")

    def launch() -> None:
        for _ in range(1000):
            one.add_(1)

    took = seconds_of(launch, check, most=10)
    check.time("1000 launches", took, us_each=round(took * 1e3, 2))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    took = seconds_of(graph.replay, check, most=20)
    check.time("1000 launches in a CUDA graph", took, us_each=round(took * 1e3, 2))


def ops(check: Check) -> None:
    """Compare depth-wise convolutions and pixel sums with float64, and time them."""
    side = 32 if check.quick else 128
    shapes = ((1, side, 48), (2, side // 2, 96), (4, side // 8, 384))
    for name in check.precisions():
        runtime = check.runtime(name)
        for n, s, c in shapes:
            torch.manual_seed(c)
            with check.trial(f"depth-wise {name} {n}x{s}x{s}x{3 * c}") as expect:
                errors = _depthwise_errors(runtime, n, s, 3 * c)
                shown = [f"{error:.1e}" for error in errors]
                expect(max(errors) < ALLOWED[name], errors=shown)
            with check.trial(f"pixel sums {name} {n}x{s}x{s}x{c}") as expect:
                error = _sums_error(runtime, n, s, c)
                limit = 1e-3 if name == "tf32" else 1e-5
                expect(error < limit, error=f"{error:.1e}")
    if check.on_cuda:
        for n, s, c in ((1, 512, 48), (1, 512, 96), (4, 256, 48), (192, 64, 48)):
            _time_ops(check, n, s, c)


def _depthwise_errors(runtime: Runtime, n: int, s: int, c: int) -> list[float]:
    """Return the relative errors of the convolution's result and of both gradients."""
    pixels = torch.randn(n, s, s, c, dtype=torch.float64)
    kernel = torch.randn(c, 1, 3, 3, dtype=torch.float64) / 3
    results = []
    rounded = pixels.to(runtime.dtype), kernel.to(runtime.dtype)
    for given in ([z.to(runtime.device) for z in rounded], [z.double() for z in rounded]):
        x, w = (z.clone().requires_grad_() for z in given)
        y = F.conv2d(x.permute(0, 3, 1, 2), w, padding=1, groups=c)
        ramp = torch.linspace(-1, 1, y.shape[-1], device=y.device, dtype=y.dtype)
        results.append([y, *torch.autograd.grad((y * ramp).sum(), (x, w))])
    return [relative(a, b) for a, b in zip(*results, strict=True)]


def _sums_error(runtime: Runtime, n: int, s: int, c: int) -> float:
    q, k = (torch.randn(n, s, s, c, dtype=torch.float64).to(runtime.dtype) + 0.25 for _ in range(2))
    heads = c // 48
    found = sums_of_pixels(q.to(runtime.device), k.to(runtime.device), heads)
    q, k = (z.double().flatten(1, 2).unflatten(-1, (heads, -1)) for z in (q, k))
    want = (torch.einsum("nphi,nphj->nhij", q, k), q.square().sum(1), k.square().sum(1))
    return max(relative(a, b) for a, b in zip(found, want, strict=True))


def _time_ops(check: Check, n: int, s: int, c: int) -> None:
    dtype = check.runtime(check.precisions()[-1]).dtype
    x = torch.randn(n, s, s, 3 * c, device="cuda", dtype=dtype, requires_grad=True)
    w = torch.randn(3 * c, 1, 3, 3, device="cuda", dtype=dtype, requires_grad=True)

    def convolve() -> Tensor:
        return F.conv2d(x.permute(0, 3, 1, 2), w, padding=1, groups=3 * c)

    took = seconds_of(convolve, check)
    check.time(f"depth-wise {n}x{s}x{s}x{3 * c}", took, gb_s=round(4 * x.numel() / took / 1e9))
    y = convolve()
    g = torch.randn_like(y)
    took = seconds_of(lambda: torch.autograd.grad(y, (x, w), g, retain_graph=True), check)
    rate = round(8 * x.numel() / took / 1e9)
    check.time(f"depth-wise backward {n}x{s}x{s}x{3 * c}", took, gb_s=rate)
    q, k = x.detach().chunk(3, -1)[:2]
    took = seconds_of(lambda: sums_of_pixels(q, k, 1), check)
    check.time(f"pixel sums {n}x{s}x{s}x{c}", took, gb_s=round(4 * q.numel() / took / 1e9))
    a, b = q.flatten(1, 2).float(), k.flatten(1, 2).float()
    took = seconds_of(lambda: torch.bmm(a.transpose(1, 2), b), check)
    u, v = (z.unflatten(1, (s * s // 1024, -1)).flatten(0, 1) for z in (a, b))
    cut = seconds_of(lambda: torch.bmm(u.transpose(1, 2), v).unflatten(0, (n, -1)).sum(1), check)
    check.time(f"Gram {n}x{s * s}x{c}", took, in_pieces_of_1024_ms=round(cut * 1e3, 4))


def kernels(check: Check) -> None:
    """Compare the Triton kernels of a block with plain torch, part by part, and time both.

    On a CPU the kernels run in Triton's interpreter, on a few pixels, and are not timed.
    """
    if not importlib.util.find_spec("triton"):
        check.write(kernels="skipped: Triton is not installed")
        return
    if not check.on_cuda:
        choose.TRIED_ROWS, choose.TRIED_VALUES = 4, 4 * 8 * 48
        choose._seconds = lambda run: 0.0
    shapes = ((48, 1), (96, 2), (96, 1), (192, 4), (384, 8), (24, 1))
    for width, heads in shapes[: 2 if check.quick else None]:
        for dtype in choose.ALLOWED if check.on_cuda else [torch.float16]:
            _try_kernels(check, width, heads, dtype)


def _try_kernels(check: Check, width: int, heads: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    device = torch.device(check.device)
    block = PreparedBlock.of(Block(width, heads, 4.0, False, "with_bias").to(device), dtype, False)
    with torch.inference_mode():
        _, trials = choose.try_out(block, device, width)
    for norm in ("with_bias", "bias_free"):
        trained = Block(width, heads, 4.0, False, norm).to(device)
        stream = torch.empty(width, device=device, dtype=dtype)
        found = [try_norm(trained.norm2, stream, dtype)]
        if width <= WIDEST_ON_CHIP:
            found.append(try_feed_forward(trained, stream, dtype))
        trials += [t._replace(part=f"{norm} {t.part} in training") for t in found]
    for trial in trials:
        name = f"{trial.part}, {width} channels, {heads} heads, {dtype}".replace("torch.", "")
        good = trial.error is not None and trial.error <= choose.ALLOWED[dtype]
        error = trial.failure if trial.error is None else f"{trial.error:.1e}"
        check.expect(name, good, error=error)
        if check.on_cuda and good:
            check.time(name, trial.seconds, plain_ms=round(trial.plain_seconds * 1e3, 4))


def net(check: Check) -> None:
    """Compare eps_hat - x_t with the CPU's, for each way of running the network.

    x_t is subtracted because it would hide errors.
    """
    allow_failures()  # as when restoring: the precisions share code, and exceed torch's limit of 8
    models = {"random": random_network(check.network()).eval()}
    if not check.quick:
        for name in ("derain", "derain-4step", "denoise"):
            models[name] = load_checkpoint(choose_weights(name).path).network().eval()
    for label, model in models.items():
        for h, w in ((64, 96),) if check.quick else ((64, 96), (200, 256)):
            torch.manual_seed(h)
            x, t = torch.randn(2, 6, h, w), torch.tensor([500.0, 20.0])
            with torch.inference_mode():
                want = StripNetwork(model)(x, t) - x[:, -3:]
            for name in check.precisions():
                _compare_executions(check, name, f"{label} {h}x{w}", model, x, t, want)
    if check.on_cuda and not check.quick and torch.cuda.mem_get_info()[0] > 24 << 30:
        _compare_large_strips(check)


def _compare_executions(
    check: Check, precision: str, label: str, model: DFT, x: Tensor, t: Tensor, want: Tensor
) -> None:
    runtime = check.runtime(precision)
    there = copy.deepcopy(model).to(runtime.device)
    calls: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"network": there}
    calls |= {
        f"strips of {rows or 'any'} rows": StripNetwork(there, rows, runtime.dtype)
        for rows in (None, 24, 7)
    }
    if check.on_cuda and label.startswith("random 64"):
        calls["strips compiled"] = StripNetwork(there, None, runtime.dtype, compile=True)
    for how, call in calls.items():
        name = f"{label} {how} {precision}"
        given_up = functions_given_up() if "compiled" in how else 0
        with check.trial(name) as expect, torch.inference_mode(), runtime.autocast():
            found = call(x.to(runtime.device), t.to(runtime.device)).float().cpu() - x[:, -3:]
            error = relative(found, want)
            expect(error < ALLOWED[precision], error=f"{error:.1e}")
            if "compiled" in how:
                count = functions_given_up() - given_up
                check.expect(f"{name}: no function left uncompiled", count == 0, functions=count)


def _compare_large_strips(check: Check) -> None:
    """Compare one strip whose hidden layer has more than 2^31 values with strips as planned."""
    runtime = check.runtime(check.precisions()[-1])
    there = random_network(Network(), runtime.device).eval()
    x, t = torch.randn(1, 6, 2168, 3840, device="cuda"), torch.full((1,), 500.0, device="cuda")
    with check.trial("more than 2^31 values") as expect, torch.inference_mode():
        planned = StripNetwork(there, None, runtime.dtype)(x, t)
        error = relative(StripNetwork(there, 2168, runtime.dtype)(x, t), planned)
        expect(error < ALLOWED["bf16"], error=f"{error:.1e}")


def grad(check: Check) -> None:
    """Compare losses and gradients of both stages with the CPU's, and take training steps.

    One step has gradients that are not finite and must be skipped.
    """
    kinds: list[Kind] = [None, "call"] if check.quick else [None, "none", "call", "level"]
    _compare_gradients(check, kinds, compiled=False)
    for name in check.precisions():
        with check.trial(f"steps {name}"):
            _take_steps(check, name)


def _compare_gradients(check: Check, kinds: list[Kind], compiled: bool) -> None:
    network = replace(check.network(), blocks=[1, 1, 1, 1])
    base, batch = random_network(network), random_batch(3, 32, 1000)
    cpu = make_runtime("cpu", "fp32")
    for kind in kinds:
        want = _loss_and_gradient(make_stepper(copy.deepcopy(base), cpu, kind), batch)
        for name in check.precisions():
            runtime = check.runtime(name)
            label = f"{kind or 'coarse'} {name}{' compiled' * compiled}"
            with check.trial(label) as expect:
                stepper = make_stepper(copy.deepcopy(base).to(runtime.device), runtime, kind)
                if compiled:
                    check.write(compile=label, notice=compile_in_place(stepper.net, "on", runtime))
                loss, gradient = _loss_and_gradient(stepper, batch)
                cosine = float(torch.cosine_similarity(gradient, want[1], dim=0))
                close = abs(loss / want[0] - 1) < 10 * ALLOWED[name]
                good = close and cosine > LEAST_COSINE[name]
                expect(good, cosine=round(cosine, 6), loss=loss, on_cpu=want[0])


def _loss_and_gradient(stepper: Stepper, batch: Any) -> tuple[float, Tensor]:
    loss = stepper._loss(batch)
    loss.backward()
    parts = [
        p.grad.flatten().double().cpu() for p in stepper.net.parameters() if p.grad is not None
    ]
    return float(loss.detach()), torch.cat(parts)


def _take_steps(check: Check, precision: str) -> None:
    runtime = check.runtime(precision)
    network = replace(check.network(), blocks=[1, 1, 1, 1])
    stepper = make_stepper(random_network(network, runtime.device), runtime)
    batch = random_batch(3, 32, 1000)
    losses = [stepper.step(batch, 1.0, 1e-3, 2).loss for _ in range(12)]
    before = [p.detach().clone() for p in stepper.net.parameters()]
    scale = stepper.scaler.get_scale()
    endless = replace(batch, noise=batch.noise * torch.inf)
    bad = stepper.step(endless, 1.0, 1e-3, 3)
    same = all(map(torch.equal, before, stepper.net.parameters()))
    halved = precision != "fp16" or stepper.scaler.get_scale() < scale
    falls = losses[-1] < losses[0]
    check.expect(f"loss falls {precision}", falls, losses=[round(v, 4) for v in losses[::4]])
    check.expect(
        f"a step that is not finite is skipped {precision}", bad.skipped and same and halved
    )


def memory(check: Check) -> None:
    """Compare planned with allocated memory, and restore with less memory than planned."""
    runtime = check.runtime(check.precisions()[-1])
    model = random_network(check.network(), runtime.device).eval()
    if not check.on_cuda:
        strips = StripNetwork(model, dtype=runtime.dtype)
        check.write(bytes_of_a_call=strip_bytes(strips, 720, 1280, 1, 360))
        return
    x, t = torch.randn(1, 6, 512, 768, device="cuda"), torch.full((1,), 500.0, device="cuda")
    for rows in (512, 128, 16):
        strips = StripNetwork(model, rows, runtime.dtype)
        with torch.inference_mode():
            peak = _allocated_by(partial(strips, x, t))
        ratio = peak / strip_bytes(strips, 512, 768, 1, rows)
        check.expect(f"bytes of strips of {rows} rows", 0.8 < ratio < 1.2, of_plan=round(ratio, 3))
    stepper = make_stepper(random_network(check.network(), runtime.device), runtime)
    fixed = weight_bytes(sum(p.numel() for p in model.parameters()), runtime.dtype)
    kernels = kernels_in_use(check.network(), "off", runtime)
    for patch in (32, 64, 128):
        peak = _allocated_by(partial(stepper.try_out, random_batch(8, patch, 1000), 8))
        planned = fixed + 8 * step_bytes(check.network(), Stage(), 1, patch, runtime, kernels)
        good = 0.7 < peak / planned < 1.4
        check.expect(f"bytes of a step at {patch} px", good, of_plan=round(peak / planned, 3))
    with check.trial("restore continues in strips when memory runs out") as expect:
        _run_out_of_memory(expect, model, runtime)


def _allocated_by(run: Callable[[], object]) -> int:
    run()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _run_out_of_memory(expect: Callable[..., None], model: DFT, runtime: Runtime) -> None:
    strips = StripNetwork(model, dtype=runtime.dtype)
    executor = Executor(
        strips,
        Sampler(ALPHA_BAR, [500]),
        runtime,
        max_memory=1 << 40,  # more than exists
    )
    gc.collect()
    torch.cuda.empty_cache()
    planned = strip_bytes(strips, 1024, 1024, 1, 64) + 4 * 42 * (1 << 20)
    limit = torch.cuda.memory_allocated() + int(1.2 * planned)
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
    ran = executor(torch.rand(1, 3, 1024, 1024), ["a"])
    torch.cuda.set_per_process_memory_fraction(1.0)
    expect(any("out of memory" in note for note in ran.notes), notes=ran.notes)


def cli(check: Check) -> None:
    """Run the commands as a user does: train, stop, resume, fine, sweep, restore, eval."""
    work = check.folder / "cli"
    shutil.rmtree(work, ignore_errors=True)
    clean, shards, device = work / "clean", work / "shards", ["--device", check.device]
    _draw_pictures(clean)
    _command(check, "prepare", clean, "--synthesize", "rain", "--val", 1, "--out", shards)
    if not shards.is_dir():
        return
    small = ["coarse.iterations=60", "coarse.switch_every=10", "train.validate_every=30",
             "train.log_every=1", "sampling.grid=[999,500]"]  # fmt: skip
    fine = ["fine.iterations=24", "fine.switch_every=4", "sampling.grid=[999,500]"]
    if check.quick:
        small = [*small[1:], "coarse.iterations=4", "network.dim=8"]
        fine = ["fine.iterations=2", "sampling.grid=[999,500]"]
    start = ("train-coarse", "--recipe", "tiny", "--data", shards, *device)
    folder = work
    for precision in check.precisions()[: 1 if check.quick else None]:
        folder = work / f"coarse-{precision}"
        stop = [] if check.quick else ["--max-time", "0.05"]
        words = (*start, "--out", folder, "--precision", precision, *stop, *small)
        _command(check, *words, codes=(0, 143))
        _command(check, "train-coarse", "--resume", "--out", folder, *device)
        if not check.quick:
            _expect_falling(check, folder / "metrics.csv", precision)
    last = work / "fine" / "fine.pt"
    _command(
        check, "train-fine", "--from", folder / "coarse.pt", "--out", last.parent, *device, *fine
    )
    _command(
        check, "sweep-steps", last, "--steps", "1,2", "--no-stamp", "--out", work / "sweep", *device
    )
    _command(check, "restore", clean, work / "restored", "--weights", last, *device)
    _command(check, "eval", work / "restored", clean, "--json")
    _command(check, "doctor")


def _draw_pictures(folder: Path) -> None:
    """Write pictures of smooth shapes, to train on and to restore."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:192, 0:256] / 64
    for i in range(4):
        planes = [
            127 + 120 * np.sin(a * x + b * y + c) for a, b, c in random.uniform(0.3, 3, (3, 3))
        ]
        Image.fromarray(np.stack(planes, -1).clip(0, 255).astype(np.uint8)).save(
            folder / f"{i}.png"
        )


def _command(check: Check, *words: object, codes: tuple[int, ...] = (0,)) -> None:
    line = [*RUN, *map(str, words)]
    done = subprocess.run(line, text=True, capture_output=True, timeout=600, check=False)  # noqa: S603
    good = done.returncode in codes
    said = "" if good else done.stderr.strip().splitlines()[-1:]
    check.expect(" ".join(line[3:5]), good, code=done.returncode, said=said)


def _expect_falling(check: Check, metrics: Path, precision: str) -> None:
    with metrics.open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    first, last = statistics.fmean(losses[:10]), statistics.fmean(losses[-10:])
    check.expect(f"loss falls {precision}", last < first, first=first, last=last)


def restore(check: Check) -> None:
    """Time a network call at several sizes and in each way of running it, and profile it."""
    networks = {"official": check.network()}
    models = {"official": random_network(check.network())}
    if not check.quick:
        found = load_checkpoint(choose_weights("derain").path)
        models["derain"], networks["derain"] = found.network(), found.meta.network
    sizes = (
        [(64, 64)]
        if check.quick
        else [(128, 128), (256, 256), (512, 512), (720, 1280), (1080, 1920)]
    )
    for label, model in models.items():
        for name in check.precisions()[::-1]:
            for h, w in sizes:
                with check.trial(f"{label} {name} {w}x{h}"), torch.inference_mode():
                    _time_call(check, label, name, model, networks[label], h, w)


def _time_call(
    check: Check, label: str, precision: str, model: DFT, network: Network, h: int, w: int
) -> None:
    runtime = check.runtime(precision)
    there = model.eval().to(runtime.device)
    x = torch.randn(1, 6, h, w, device=runtime.device)
    t = torch.full((1,), 500.0, device=runtime.device)
    strips, name = StripNetwork(there, None, runtime.dtype), f"{label} {precision} {w}x{h}"
    results: list[Tensor] = []
    for recorded in ("off", "auto") if check.on_cuda else ("off",):
        os.environ[recording.SWITCH] = recorded
        took = seconds_of(lambda: strips(x, t), check, most=20)
        results.append(strips(x, t))
        rate = 2 * network_macs(network, h, w) / took / 1e12
        more = " recorded" * (recorded == "auto")
        check.time(name + more, took, tflops=round(rate, 1))
    os.environ[recording.SWITCH] = "off"
    if not check.on_cuda:
        return
    check.expect(f"{name}: recorded as launched", torch.equal(*results))
    if precision == check.precisions()[-1] and h in (512, 720):
        compiled = StripNetwork(there, None, runtime.dtype, compile=True)
        begin = time.perf_counter()
        compiled(x, t)
        torch.cuda.synchronize()
        first = round(time.perf_counter() - begin, 1)
        took = seconds_of(lambda: compiled(x, t), check, most=20)
        check.time(f"{name} compiled", took, first_s=first)
        busy = profile_of(lambda: strips(x, t), check.folder / f"profile-{label}-{w}x{h}.txt")
        check.write(busy=round(busy, 3), of=name)
    if precision == check.precisions()[-1] and h == 720:
        for rows in (h // 2, h // 4, h // 8):  # q, k and v of so few rows may fit the cache
            fewer = StripNetwork(there, rows, runtime.dtype)
            took = seconds_of(partial(fewer, x, t), check, most=20)
            check.time(f"{name} strips of {rows} rows", took)
    release_cached_memory(runtime.device)


def train(check: Check) -> None:
    """Time uncompiled training steps at the shapes of the official recipe."""
    name = "bf16" if "bf16" in check.precisions() else check.precisions()[-1]
    shapes = [(16, 2)] if check.quick else [(32, 720), (64, 192), (128, 48)]
    for fine in TIMED:
        for patch, rows in shapes:
            label = f"{fine or 'coarse'} {patch} px {name}"
            with check.trial(label):
                _time_step(check, label, fine, patch, rows if fine is None else -(-rows // 4))
    # In fp16 too, since there a recorded step also reads the loss scale.
    for precision in dict.fromkeys((name, "fp16") if check.on_cuda else (name,)):
        for fine in TIMED:
            with check.trial(f"recorded {fine or 'coarse'} {precision}"):
                _compare_recorded(check, precision, fine)


def _compare_recorded(check: Check, precision: str, fine: Kind) -> None:
    """Compare gradients and times of a small network's steps, launched and recorded."""
    runtime = check.runtime(precision)
    network, patch, rows = (QUICK, 16, 2) if check.quick else (DERAIN, 192, 16)
    stage = None if fine is None else (FineStage(recompute=fine), [500])
    batch, another = (random_batch(rows, patch, 1000) for _ in range(2))
    gradients: list[Tensor] = []
    name = f"{fine or 'coarse'} step of {rows} x {patch} px {precision}"
    for switch in ("off", "auto"):
        objective = Objective(
            random_network(network, runtime.device), ALPHA_BAR.to(runtime.device), stage
        )
        stepper = Stepper(objective, Train(), runtime)
        said: list[str] = []
        stepper.recorder.notify = said.append
        with mock.patch.dict(os.environ, {recording.SWITCH: switch}):
            took = seconds_of(partial(stepper.step, batch, 1.0, 0.0, rows), check, most=20)
            # The learning rate is 0, so the weights are the same: a recorded step must read the
            # new batch.
            stepper.step(another, 1.0, 0.0, rows)
        parts = [p.grad.flatten() for p in stepper.net.parameters() if p.grad is not None]
        gradients.append(torch.cat(parts))
        check.time(name + " recorded" * (switch == "auto"), took)
        check.expect(f"{name}: recording not given up", not said, said=said)
    error, same = relative(gradients[1], gradients[0]), torch.equal(*gradients)
    # Both run the same kernels, but some of these add in any order, so the last digits may differ.
    check.expect(f"{name}: recorded as launched", error < 2e-3, error=f"{error:.1e}", equal=same)


def _time_step(check: Check, label: str, fine: Kind, patch: int, rows: int) -> None:
    runtime = check.runtime(label.rsplit(maxsplit=1)[-1])
    stepper = make_stepper(random_network(check.network(), runtime.device), runtime, fine)
    batch, micro = random_batch(rows, patch, 1000), rows
    while True:
        try:
            took = seconds_of(partial(stepper.step, batch, 1.0, 1e-6, micro), check, most=5)
            break
        except Exception as error:
            if micro == 1 or not is_out_of_memory(error):
                raise
        stepper.abandon()
        release_cached_memory(runtime.device)
        micro = -(-micro // 2)
    gib = round(peak_bytes(runtime.device) / 2**30, 1)
    check.time(label, took, rows=rows, micro=micro, images_s=round(rows / took), gib=gib)
    if check.on_cuda and patch == 64:
        path = check.folder / f"profile-train-{fine or 'coarse'}.txt"
        busy = profile_of(lambda: stepper.step(batch, 1.0, 1e-6, micro), path)
        check.write(busy=round(busy, 3), of=label)
    release_cached_memory(runtime.device)


def compiled(check: Check) -> None:
    """Compare compiled gradients with the CPU's, and time compiling and a compiled step."""
    if not check.on_cuda:
        notice = compile_in_place(random_network(QUICK), "auto", check.runtime("fp32"))
        check.expect("on a CPU nothing is compiled by default", notice is None)
        return
    _compare_gradients(check, [None, "call"], compiled=True)
    name = "bf16" if "bf16" in check.precisions() else "fp16"
    runtime = check.runtime(name)
    stepper = make_stepper(random_network(check.network(), runtime.device), runtime)
    batch = random_batch(48, 64, 1000)
    took = seconds_of(lambda: stepper.step(batch, 1.0, 1e-6, 48), check, most=5)
    check.time("48 x 64 px uncompiled", took)
    check.write(notice=compile_in_place(stepper.net, "on", runtime))
    with check.trial("compiled step"):
        begin = time.perf_counter()
        stepper.try_out(batch, 48)
        torch.cuda.synchronize()
        first = round(time.perf_counter() - begin)
        took = seconds_of(lambda: stepper.step(batch, 1.0, 1e-6, 48), check, most=5)
        check.time("48 x 64 px compiled", took, first_s=first)


def ranks(check: Check) -> None:
    """Compare training on two GPUs with one, in float32; needs the shards of stage `cli`."""
    if not check.on_cuda or torch.cuda.device_count() < 2:
        check.write(ranks="skipped: fewer than two GPUs")
        return
    shards = check.folder / "cli" / "shards"
    words = ["train-coarse", "--recipe", "tiny", "--data", shards, "--precision", "fp32",
             "coarse.iterations=20", "train.compile=off", "train.validate_every=1000"]  # fmt: skip
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *RUN[1:]]
    weights = []
    for how, start in (("one", RUN), ("two", two)):
        out = check.folder / f"ranks-{how}"
        shutil.rmtree(out, ignore_errors=True)
        line = [*map(str, [*start, *words, "--out", out])]
        done = subprocess.run(line, capture_output=True, text=True, timeout=100, check=False)  # noqa: S603
        quiet = "strides do not match" not in done.stderr
        check.expect(f"{how} process{'es' * (how == 'two')}", done.returncode == 0 and quiet)
        weights.append(torch.load(out / "coarse.pt", weights_only=True)["params"])
    error = max(relative(weights[1][key], weights[0][key]) for key in weights[0])
    check.expect("two GPUs train the same weights as one", error < 1e-3, error=f"{error:.1e}")


STAGES: dict[str, tuple[Callable[[Check], None], int]] = {
    "env": (env, 60),
    "ops": (ops, 100),
    "kernels": (kernels, 240),
    "net": (net, 120),
    "grad": (grad, 120),
    "memory": (memory, 90),
    "cli": (cli, 200),
    "restore": (restore, 150),
    "train": (train, 200),
    "compiled": (compiled, 420),
    "ranks": (ranks, 120),
}
"""The stages in order, each with its function and its time limit in seconds on a GPU."""

if __name__ == "__main__":
    try:
        sys.exit(main())
    except ResourceError as error:
        sys.exit(f"error: {error}")
