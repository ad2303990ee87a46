"""Compare the network with the same network written down plainly: seconds, agreement, memory.

    compare_speed.py forward [--size 256] [--rounds 7]
    compare_speed.py step [--size 64] [--batch 4] [--compile] [--apart]
    compare_speed.py memory [--size 1024]
    compare_speed.py runtimes [--weights derain]    beside onnxruntime and, if there, OpenVINO
    compare_speed.py call --size 2160x3840          one call in strips, nothing beside it

The plain transcription is `Textbook` in tests/kit/textbook.py; `--transcription FILE` takes that of
another file, with the same parameters and call signature. The variants take turns within one run;
ratios are medians over rounds. Prints one JSON document per line; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import threading
import time
import unittest.mock
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn

from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.tools.bench import gemm_tflops, network_macs
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
from c2fdft_cli.engine.weights.choose import choose_weights
from c2fdft_cli.engine.weights.onnx import onnx_model
from c2fdft_cli.execution import strips
from c2fdft_cli.execution.block_gradients import install
from c2fdft_cli.execution.device import Runtime, cpu_bf16_speed
from c2fdft_cli.execution.memory import keep_freed_memory
from c2fdft_cli.execution.native.library import kernels_for
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.recipe.schema import Network

TEXTBOOK = Path(__file__).parents[2] / "tests" / "kit" / "textbook.py"
Call = Callable[[Tensor, Tensor], Tensor]
"""The network, or what computes the same: eps_hat from x and t."""


def main() -> None:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--transcription", default=str(TEXTBOOK), help="file of class Textbook")
    parser.add_argument("--size", default=None, help="side, or HEIGHTxWIDTH, in px")
    parser.add_argument("--batch", type=int, default=4, help="batch size of step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--weights", help="runtimes: packaged weights or a checkpoint")
    parser.add_argument("--compile", action="store_true", help="step: compile our network")
    parser.add_argument("--apart", action="store_true", help="step: each in its own process")
    args = parser.parse_args()
    torch.manual_seed(0)
    PARTS[args.part](args)


def forward(args: argparse.Namespace) -> None:
    """Time one call of transcription, network, and strips in float32 and bfloat16."""
    h, w = _size(args.size or "256")
    book, net = _pair(args.transcription)
    calls: dict[str, Call] = {
        "transcription fp32": book,
        "network fp32": net,
        "strips fp32": StripNetwork(net),
    }
    if cpu_bf16_speed() is not None:
        calls["strips bf16"] = StripNetwork(net, dtype=torch.bfloat16)
    x, t = torch.rand(1, 6, h, w), torch.tensor([500.0])
    with torch.inference_mode():
        results = {name: call(x, t) for name, call in calls.items()}
        seconds = _take_turns({n: partial(c, x, t) for n, c in calls.items()}, args.rounds)
        gemm = {
            name: statistics.median(gemm_tflops(Runtime(x.device, dtype)) for _ in range(5))
            for name, dtype in PRECISIONS.items()
            if any(call.endswith(name) for call in calls)
        }
    expected = results["transcription fp32"]
    for name in calls:
        error = float((results[name] - expected).norm() / expected.norm())
        tflops = 2 * network_macs(Network(), h, w) / statistics.median(seconds[name]) / 1e12
        of_gemm = tflops / gemm[name[-4:]]
        _say(args, f"{h}x{w}", name, seconds, relative_error=error, of_gemm=round(of_gemm, 3))


def runtimes(args: argparse.Namespace) -> None:
    """Time one call of transcription, onnxruntime, OpenVINO (if installed) and strips.

    All in float32, strips also in bfloat16 if the CPU has instructions for it. Strips run with
    torch's kernels and, where they can be built, with the compiled ones.
    """
    h, w = _size(args.size or "256")
    x, t = torch.rand(1, 6, h, w), torch.tensor([500.0])
    with torch.inference_mode(False):
        network = Network()
        net = DFT().eval().requires_grad_(False)
        if args.weights:
            checkpoint = load_checkpoint(choose_weights(args.weights).path)
            network, net = checkpoint.meta.network, checkpoint.network().requires_grad_(False)
        book = _load(args.transcription, **asdict(network))
        book.load_state_dict(net.state_dict(), strict=True)
        calls: dict[str, Call] = {
            "transcription fp32": book.eval().requires_grad_(False),
            **_other_runtimes(net, asdict(network)),
        }
    for name, dtype in PRECISIONS.items():
        if name == "bf16" and cpu_bf16_speed() is None:
            continue  # emulated, at a minute a call
        with unittest.mock.patch.object(strips, "kernels_for", return_value=None):
            calls[f"strips, torch's kernels, {name}"] = StripNetwork(net, dtype=dtype)
        if kernels_for(x.device, dtype) is not None:
            calls[f"strips, compiled kernels, {name}"] = StripNetwork(net, dtype=dtype)
    with torch.inference_mode():
        results = {name: call(x, t) for name, call in calls.items()}
        seconds = _take_turns({n: partial(c, x, t) for n, c in calls.items()}, args.rounds)
    expected = results["transcription fp32"]
    for name in calls:
        error = float((results[name] - expected).norm() / expected.norm())
        _say(args, f"{h}x{w}", name, seconds, relative_error=error)


def _other_runtimes(net: DFT, arguments: dict[str, object]) -> dict[str, Call]:
    """Return calls of the network in onnxruntime and OpenVINO, with as many threads as torch."""
    threads = torch.get_num_threads()
    calls: dict[str, Call] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        path.write_bytes(onnx_model(net, arguments).SerializeToString())
        with contextlib.suppress(ImportError):
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
            calls["onnxruntime"] = lambda x, t: torch.from_numpy(
                session.run(["eps"], {"x": x.numpy(), "t": t.numpy()})[0]
            )
        with contextlib.suppress(ImportError):
            import openvino

            settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
            compiled = openvino.Core().compile_model(path, "CPU", settings)
            calls["OpenVINO"] = lambda x, t: torch.from_numpy(
                compiled({"x": x.numpy(), "t": t.numpy()})[0]
            )
    return calls


def step(args: argparse.Namespace) -> None:
    """Time a coarse training step with its optimiser: eager transcription against our network.

    Both run in one process, which keeps freed memory for both. With --apart each runs in its own
    process, and only ours keeps freed memory, as this program's training does
    (`keep_freed_memory`).
    """
    h, w = _size(args.size or "64")
    names = [f"{whose} fp32" for whose in ("transcription", "ours")]
    if cpu_bf16_speed() is not None:
        names += [name.replace("fp32", "bf16") for name in names]
    with contextlib.ExitStack() as stack:
        work: dict[str, Callable[[], object]]
        if args.apart:
            work = {name: stack.enter_context(_Apart(args, name)) for name in names}
        else:
            keep_freed_memory()
            work = {name: _training_step(args, name) for name in names}
        for name, run in work.items():
            began = time.perf_counter()
            run()
            sys.stderr.write(f"first {name}: {time.perf_counter() - began:.1f} s\n")
        seconds = _take_turns(work, args.rounds)
    for name in work:
        beside = f"transcription {name[-4:]}"
        ratios = [a / b for a, b in zip(seconds[beside], seconds[name], strict=True)]
        same = round(statistics.median(ratios), 2)
        _say(args, f"{args.batch} x {h}x{w}", name, seconds, same_precision=same)


def _training_step(args: argparse.Namespace, name: str) -> Callable[[], object]:
    """Return a training step; name is "transcription" or "ours", then "fp32" or "bf16"."""
    h, w = _size(args.size or "64")
    whose, precision = name.split()
    book, net = _pair(args.transcription)
    one: nn.Module = (net if whose == "ours" else book).train().requires_grad_(True)
    if whose == "ours":
        install(one, torch.device("cpu"))  # as `c2fdft train-*` does
    call = torch.compile(one) if args.compile and whose == "ours" else one
    optimizer = torch.optim.AdamW(one.parameters(), lr=1e-4, fused=True)
    x, t = torch.randn(args.batch, 6, h, w), torch.linspace(100, 900, args.batch)

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            eps_hat = call(x, t)
        eps_hat.float().abs().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


class _Apart:
    """A training step in its own process, which takes a step at each call and waits otherwise."""

    def __init__(self, args: argparse.Namespace, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, args, name), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> _Apart:
        return self

    def __call__(self) -> None:
        self._ours.send(None)
        self._ours.recv()

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._process.join()


def _serve(pipe: Connection, args: argparse.Namespace, name: str) -> None:
    torch.manual_seed(0)
    if name.startswith("ours"):
        keep_freed_memory()
    run = _training_step(args, name)
    with contextlib.suppress(EOFError):  # the other end of the pipe was closed
        while True:
            pipe.recv()
            run()
            pipe.send(None)


def memory(args: argparse.Namespace) -> None:
    """Measure seconds and peak memory of one call, each variant in its own process.

    Memory is resident memory beyond what was resident before the call.
    """
    h, w = _size(args.size or "1024")
    context = multiprocessing.get_context("spawn")
    for name in ("transcription", "whole", "strips"):
        for _ in range(args.rounds):
            with context.Pool(1) as pool:
                took, peak = pool.apply(_measure, (args.transcription, name, h, w))
            _print(args, f"{h}x{w}", name, took, gib=round(peak / 2**30, 3))


def call(args: argparse.Namespace) -> None:
    """Measure one call of the full network in strips, in its own process."""
    h, w = _size(args.size or "2160x3840")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        took, peak = pool.apply(_measure, (args.transcription, "strips", h, w))
    _print(args, f"{h}x{w}", "strips", took, gib=round(peak / 2**30, 3))


PARTS = {"forward": forward, "runtimes": runtimes, "step": step, "memory": memory, "call": call}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _measure(transcription: str, name: str, h: int, w: int) -> tuple[float, int]:
    """Return seconds of one call and its peak bytes beyond what was resident before."""
    torch.manual_seed(0)
    net: nn.Module | StripNetwork
    if name == "transcription":
        net = _load(transcription).eval()
    else:
        net = DFT().eval()
        net = StripNetwork(net) if name == "strips" else net
    small, t = torch.rand(1, 6, 64, 64), torch.tensor([500.0])
    x = torch.rand(1, 6, h, w)
    with torch.inference_mode():
        net(small, t)
        before, stop = _resident(), threading.Event()
        peak = [before]

        def watch() -> None:
            while not stop.wait(0.002):
                peak[0] = max(peak[0], _resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        began = time.perf_counter()
        net(x, t)
        took = time.perf_counter() - began
        stop.set()
        watcher.join()
    return took, peak[0] - before


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _pair(transcription: str) -> tuple[nn.Module, DFT]:
    """Return the transcription and our network, both with the same weights."""
    net = DFT().eval().requires_grad_(False)
    book = _load(transcription)
    book.load_state_dict(net.state_dict(), strict=True)
    return book.eval().requires_grad_(False), net


def _load(path: str, **arguments: object) -> nn.Module:
    spec = importlib.util.spec_from_file_location("transcription", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"no Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.Textbook(**arguments)
    return network


def _take_turns(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def _say(
    args: argparse.Namespace, size: str, name: str, seconds: dict[str, list[float]], **more: float
) -> None:
    base = seconds["transcription fp32"]
    ratios = [a / b for a, b in zip(base, seconds[name], strict=True)]
    ratio = round(statistics.median(ratios), 2)
    _print(args, size, name, statistics.median(seconds[name]), ratio=ratio, **more)


def _print(args: argparse.Namespace, size: str, name: str, seconds: float, **more: float) -> None:
    how = {"part": args.part, "compile": args.compile, "apart": args.apart}
    document = {**how, "size": size, "name": name, "seconds": round(seconds, 3), **more}
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _size(text: str) -> tuple[int, int]:
    sides = [int(side) for side in text.split("x")]
    return (sides[0], sides[-1])


if __name__ == "__main__":
    main()
