"""What an evaluation takes and gives, and how one image is scored."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from c2fdft_cli.engine.sampling.scoring import check_scorable
from c2fdft_cli.engine.sampling.subject import find_protocol
from c2fdft_cli.errors import UsageError
from c2fdft_cli.metrics.protocols import Protocol, Score, score

Item = TypeVar("Item")
Metric = Callable[[Tensor, Tensor], float]
"""A further score of (restored, target), both `[1, 3, h, w]` on the scale 0 .. 255."""


@dataclass(frozen=True)
class EvalOptions:
    """How images are scored, whatever they come from.

    Args:
        protocol: a name of `metrics.protocols.PROTOCOLS`, or None for the recipe's, else "rgb".
        border: pixels left out on each side.
        metrics: further scores by name.
        rank, world: this process among those that share the images.
    """

    protocol: str | None = None
    border: int = 0
    metrics: dict[str, Metric] = field(default_factory=dict)
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.protocol is not None:
            find_protocol(self.protocol)
        if self.border < 0:
            raise UsageError(f"--border must be 0 px or more, got {self.border}")

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's share: every `world`-th, from `rank` on."""
        return list(items[self.rank :: self.world])


@dataclass(frozen=True)
class Images:
    """What a row was computed from, `[1, 3, h, w]` on the scale 0 .. 255; None where unknown."""

    degraded: Tensor | None
    restored: Tensor
    target: Tensor | None


@dataclass(frozen=True)
class EvalRow:
    """One image's scores; with several seeds their means.

    Args:
        name: of the image.
        psnr: dB, infinite for equal images; NaN without a target.
        ssim: in [-1, 1]; NaN without a target.
        more: further metrics by name.
        degraded: PSNR and SSIM of the input, where it is known.
        by_seed: PSNR of each seed, where there are several.
    """

    name: str
    psnr: float
    ssim: float
    more: dict[str, float]
    degraded: Score | None
    by_seed: tuple[float, ...] = ()


@dataclass(frozen=True)
class ScoredRow:
    """A row, and the pixels that it was computed from."""

    row: EvalRow
    images: Images


@dataclass(frozen=True)
class EvalResult:
    """The rows of an evaluation and what they are made of.

    Args:
        protocol: of the scores.
        rows: one an image.
        scored_on: "saved files" or "network output", and in which depth.
        border: pixels left out on each side.
        without_target, without_restored: files that nothing belongs to.
        found_by: how the pairs were found.
        notes: what else to say of the numbers.
        recipe: of the weights, when they carry one.
        has_targets: False where nothing but scores without a target are known.
    """

    protocol: Protocol
    rows: list[EvalRow]
    scored_on: str
    border: int = 0
    without_target: list[Path] = field(default_factory=list)
    without_restored: list[Path] = field(default_factory=list)
    found_by: str = ""
    notes: list[str] = field(default_factory=list)
    recipe: dict[str, Any] | None = None
    has_targets: bool = True

    @property
    def spread(self) -> float | None:
        """With several seeds, the standard deviation over them of the set's mean PSNR."""
        seeds = list(zip(*(row.by_seed for row in self.rows), strict=True))
        return statistics.stdev(map(statistics.fmean, seeds)) if len(seeds) > 1 else None


def score_images(a: Tensor, b: Tensor, protocol: Protocol, border: int) -> Score:
    """`metrics.protocols.score` of one image; DataError when it is too small for SSIM's window."""
    check_scorable(a, border)
    return score(a, b, protocol, border)[0]
