"""Measure what reading and writing files costs `restore`, with a network that costs nothing.

    python recipes/scripts/bench_pipeline.py [--count 200] [--format png jpg] [--repeat 1]

Synthetic photographs of 1280x720 px (waves, edges and grain, by formula) are restored by the real
job, in one sampling step of a network that returns its input. Prints one line of JSON for each
format: pictures per second, CPU milliseconds per picture, and what they were spent on. The rest is
the sampler's own arithmetic, the file system, and threads waiting for each other.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch

from c2fdft_cli.core.diffusion import gaussian
from c2fdft_cli.core.network import DFT
from c2fdft_cli.data.images.picture import encode_picture, read_picture
from c2fdft_cli.engine.restore import inputs, job, options, pictures, plan
from c2fdft_cli.engine.sampling import sampler
from c2fdft_cli.engine.weights.checkpoint import Meta, save_checkpoint
from c2fdft_cli.recipe.schema import Network

HEIGHT, WIDTH = 720, 1280
DIFFERENT = 8
"""Number of different photographs; the others are copies of them."""


def main() -> None:
    """Measure and print a line of JSON for each format and round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--format", nargs="+", default=["png", "jpg"])
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = _weights(folder / "tiny.pt")
        for suffix in wanted.format:
            _photos(folder / suffix, suffix, wanted.count)
        for number in range(wanted.repeat):
            for suffix in wanted.format:
                out = folder / f"out-{suffix}-{number}"
                print(json.dumps(_measured(folder / suffix, out, weights, suffix, wanted.device)))  # noqa: T201


def _measured(source: Path, out: Path, weights: Path, suffix: str, device: str) -> dict[str, Any]:
    """Restore a folder, and return the rates and times as a JSON document."""
    made = plan.plan_restore(
        str(source),
        str(out),
        sampling=options.SamplingOptions(weights=str(weights), steps=1),
        machine=options.Machine(device=device, precision="fp32"),
        writing=options.Writing(format=suffix),
    )
    made.executor.predict_noise = _identity(made.executor.sampler.alpha_bar)
    with _timed() as spent:
        wall, cpu = time.perf_counter(), time.process_time()
        result = job.restore(made).run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if result.failure is not None:
        raise result.failure
    count = len(result.images)
    network = statistics.fmean(image.seconds for image in result.images)
    return {
        "format": suffix,
        "pictures": count,
        "pictures_per_second": round(count / wall, 2),
        "cpu_ms": round(1e3 * cpu / count, 1),
        "main_thread_in_the_sampler_ms": round(1e3 * network, 1),
        "cpu_ms_of": {what: round(1e3 * s / count, 1) for what, s in sorted(spent.items())},
    }


@contextmanager
def _timed() -> Iterator[dict[str, float]]:
    """Collect the CPU seconds of reading, encoding, noise and the main thread within the block."""
    spent: dict[str, float] = defaultdict(float)
    lock = threading.Lock()

    def timing(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **named: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **named)
            finally:
                with lock:
                    spent[what] += time.thread_time() - start

        return timed

    with (
        mock.patch.object(inputs, "read_picture", timing("reading", read_picture)),
        mock.patch.object(pictures, "encode_picture", timing("encoding", encode_picture)),
        mock.patch.object(pictures, "_finish", timing("writer", pictures._finish)),
        mock.patch.object(sampler, "gaussian", timing("noise", gaussian)),
    ):
        start = time.thread_time()
        yield spent
        main_thread = time.thread_time() - start
    spent["conversion and writing"] = spent.pop("writer") - spent["encoding"]
    spent["main thread"] = main_thread  # for a CPU with the noise, which it samples


def _identity(alpha_bar: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return a noise predictor with which one sampling step returns its condition unchanged."""
    levels = alpha_bar.double().cpu().tolist()

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a = levels[int(t[0])]
        condition, x_t = x.chunk(2, dim=1)
        noise = x_t.mul(1 / math.sqrt(1 - a))
        return noise.sub_(condition, alpha=math.sqrt(a) / math.sqrt(1 - a))

    return predict


def _weights(path: Path) -> Path:
    net = DFT(dim=8, blocks=(1, 1, 1, 1))
    state = net.state_dict()
    save_checkpoint(path, state, state, Meta(Network(dim=8, blocks=[1, 1, 1, 1])))
    return path


def _photos(folder: Path, suffix: str, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number:04d}.{suffix}"
        if number < DIFFERENT:
            cv2.imwrite(str(path), _photo(number))
        else:
            path.write_bytes((folder / f"{number % DIFFERENT:04d}.{suffix}").read_bytes())


def _photo(number: int) -> np.ndarray:
    """Make an image of waves, edges and grain that compresses about as well as a photograph."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    random = np.random.default_rng(number)
    image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for octave in range(1, 7):
        angle, phase = random.uniform(0, math.tau, 2)
        rate = 0.002 * 2**octave
        wave = np.sin(rate * (x * math.cos(angle) + y * math.sin(angle)) * math.tau + phase)
        image += wave[..., None] * random.uniform(0.2, 1, 3).astype(np.float32) / octave
    for _ in range(40):
        top, left = random.integers(0, HEIGHT), random.integers(0, WIDTH)
        image[top : top + 90, left : left + 120] += random.uniform(-0.7, 0.7, 3)
    grain = cv2.GaussianBlur(random.normal(0, 6, image.shape).astype(np.float32), (0, 0), 0.7)
    photo: np.ndarray = np.clip(127 + 55 * image + grain, 0, 255).astype(np.uint8)
    return photo


if __name__ == "__main__":
    main()
