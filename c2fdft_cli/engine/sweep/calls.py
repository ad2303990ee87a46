"""Network calls that several grids share: paper, section 6."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from c2fdft_cli.core.diffusion import PredictNoise
from c2fdft_cli.engine.sweep.schedules import Grid


class SharedCalls:
    """eps_hat of one image under many grids, each common beginning computed once.

    The sampler's state before call k is a function of the image, its noise and the times of the
    calls before it, so grids that begin alike share those calls exactly. Only the last path is
    kept: visited in `visiting_order`, the grids are a depth-first walk over their trie.

    Args:
        predict_noise: eps_hat of (x, t).
    """

    def __init__(self, predict_noise: PredictNoise) -> None:
        self._predict_noise = predict_noise
        self._grid: Grid = ()
        self._position = 0
        self._path: list[int] = []
        self._eps_hat: list[Tensor] = []
        self._seconds: list[float] = []
        self.spent = 0

    def forget(self) -> None:
        """Another image or other noise: nothing is shared with the one before."""
        self._path, self._eps_hat, self._seconds = [], [], []

    def begin(self, grid: Grid) -> None:
        """The next calls are those of this grid, in its order."""
        self._grid, self._position = grid, 0
        shared = 0
        while shared < min(len(grid), len(self._path)) and grid[shared] == self._path[shared]:
            shared += 1
        for kept in (self._path, self._eps_hat, self._seconds):
            del kept[shared:]

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """eps_hat of the grid's next call."""
        position = self._position
        self._position += 1
        if position == len(self._path):
            started = time.perf_counter()
            self._eps_hat.append(self._predict_noise(x_t, t))
            if x_t.device.type == "cuda":
                torch.cuda.synchronize(x_t.device)
            self._seconds.append(time.perf_counter() - started)
            self._path.append(self._grid[position])
            self.spent += 1
        return self._eps_hat[position]

    @property
    def seconds(self) -> float:
        """What the calls of the current grid took, those that were shared included."""
        return sum(self._seconds[: self._position])


def visiting_order(grids: list[Grid]) -> list[int]:
    """Indices of the grids such that those that begin alike follow each other."""
    return sorted(range(len(grids)), key=lambda i: grids[i])
