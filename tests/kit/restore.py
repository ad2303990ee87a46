"""Helpers for the tests of `restore`: checkpoints, pictures, a network that changes nothing."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c2fdft_cli.core.diffusion import PredictNoise
from c2fdft_cli.core.network import DFT
from c2fdft_cli.data.images.picture import Picture, read_picture, write_picture
from c2fdft_cli.engine.restore.job import restore
from c2fdft_cli.engine.restore.options import Machine, SamplingOptions, Writing
from c2fdft_cli.engine.restore.plan import RestorePlan, plan_restore
from c2fdft_cli.engine.restore.result import RestoreResult
from c2fdft_cli.engine.sampling.sampler import Sampler
from c2fdft_cli.engine.weights.checkpoint import Meta, save_checkpoint
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.recipe.schema import Network


class Identity:
    """Predicts noise such that x_0 equals the condition: the sampler returns its input."""

    def __init__(self, alpha_bar: torch.Tensor) -> None:
        self.alpha_bar = alpha_bar.double()
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls.append(tuple(x.shape))
        a = self.alpha_bar[int(t[0])].item()
        condition, x_t = x.double().chunk(2, dim=1)
        return ((x_t - math.sqrt(a) * condition) / math.sqrt(1 - a)).float()


def overflow_in_half_precision(patch: pytest.MonkeyPatch) -> None:
    """Let every sampler that does not run in float32 produce NaN."""
    original = Sampler.__call__

    def call(self: Sampler, network: PredictNoise, runtime: Runtime, *rest: Any) -> torch.Tensor:
        image = original(self, network, runtime, *rest)
        half = runtime.dtype != torch.float32
        return torch.full_like(image, torch.nan) if half else image

    patch.setattr(Sampler, "__call__", call)


def found_under(
    patch: pytest.MonkeyPatch, folder: Path, other: Path, *, same_inode: bool = True
) -> Path:
    """Let `os.stat` find `folder` under the name `other` too, and return `other`.

    This simulates a file system that ignores case: links would be resolved, and mounting a real one
    needs root. Without `same_inode` the number of the inode depends on the spelling of the path.
    """
    stat = os.stat

    def found(path: Any, *words: Any, **more: Any) -> os.stat_result:
        if isinstance(path, str | os.PathLike) and str(other) in str(path):
            status = stat(str(path).replace(str(other), str(folder)), *words, **more)
            if not same_inode:
                (mode, inode, *rest), named = status.__reduce__()[1]
                return os.stat_result((mode, inode + 1_000_003, *rest), named)
            return status
        return stat(path, *words, **more)

    patch.setattr(os, "stat", found)
    return other


def refuse_records(patch: pytest.MonkeyPatch, what: str, record: Path) -> None:
    """Let the system refuse to "read" or to "write_to" a file of records, as another user's.

    Root, as whom the tests may run, is refused nothing.
    """
    open_to_read, open_file = Path.open, os.open

    def refuse(path: object) -> None:
        if Path(str(path)) == record:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def read_other(path: Path, *words: Any, **more: Any) -> Any:
        refuse(path)
        return open_to_read(path, *words, **more)

    def open_other(path: Any, flags: int, *words: Any, **more: Any) -> int:
        if flags & os.O_RDWR:
            refuse(path)
        return open_file(path, flags, *words, **more)

    if what == "read":
        patch.setattr(Path, "open", read_other)
    else:
        patch.setattr(os, "open", open_other)


def write_checkpoint(path: Path, net: DFT, **meta: Any) -> Path:
    """Write a checkpoint of a small network and return its path."""
    network = Network(dim=net.dim, blocks=[1, 1, 1, 1])
    state = net.state_dict()
    save_checkpoint(path, state, state, Meta(network, **meta))
    return path


def random_picture(height: int, width: int, seed: int = 0, **options: Any) -> Picture:
    """A picture of random pixels; options are grey=True, alpha=True and depth=16."""
    random = np.random.default_rng(seed)
    dtype = np.uint16 if options.get("depth") == 16 else np.uint8
    top = np.iinfo(dtype).max + 1
    grey = bool(options.get("grey"))
    pixels = random.integers(0, top, (height, width, 1 if grey else 3), dtype=dtype)
    alpha = random.integers(0, top, (height, width), dtype=dtype) if options.get("alpha") else None
    return Picture(np.broadcast_to(pixels, (height, width, 3)).copy(), grey, alpha)


def save(path: Path, picture: Picture) -> Path:
    """Write a picture, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, picture)
    return path


class Request:
    """A request to restore: IN, OUT, and the fields of any group of options by name."""

    def __init__(
        self,
        source: str | Path,
        out: str | Path,
        weights: str | Path | None = None,
        **settings: Any,
    ) -> None:
        self.source, self.out = source, out
        self.settings = {"weights": weights and str(weights), **settings}

    def plan(self, **changes: Any) -> RestorePlan:
        """Plan the request, with some arguments changed."""
        words = {"source": self.source, "out": self.out, **self.settings, **changes}
        groups = {}
        kinds = {"sampling": SamplingOptions, "machine": Machine, "writing": Writing}
        for kind, group in kinds.items():
            names = [field.name for field in fields(group)]
            given = {name: words.pop(name) for name in names if name in words}
            groups[kind] = group(**given)
        return plan_restore(**words, **groups)


def plan(request: Request, *, identity: bool = False, **changes: Any) -> RestorePlan:
    """Plan in float32 on the CPU; `identity` replaces the network by `Identity`."""
    made = request.plan(**{"device": "cpu", "precision": "fp32", **changes})
    if identity:
        made.executor.predict_noise = Identity(made.executor.sampler.alpha_bar)
    return made


def run(request: Request, *, identity: bool = False, **changes: Any) -> RestoreResult:
    """Plan and restore."""
    return restore(plan(request, identity=identity, **changes)).run()


def pixels(path: Path) -> np.ndarray:
    """Read the pixels of a file."""
    return read_picture(path).pixels
