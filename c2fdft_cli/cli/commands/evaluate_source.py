"""What `c2fdft eval` scores: files against targets or alone, weights on shards or on named sets."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from c2fdft_cli.cli.options import weights_file
from c2fdft_cli.errors import UsageError
from c2fdft_cli.settings import (
    DEVICE,
    PRECISION,
    SEED,
    SELF_ENSEMBLE,
    SHARDS,
    WEIGHTS,
    check_settings,
    numbers,
    option_name,
    setting,
)

if TYPE_CHECKING:
    from c2fdft_cli.engine.evaluate.job import EvalOptions, EvalResult
    from c2fdft_cli.engine.sampling.pairs import PairSource
    from c2fdft_cli.engine.sampling.scoring import Scored
    from c2fdft_cli.progress import Job

_OF_WEIGHTS = ("images", "seeds", "grid", "self_ensemble")
"""Options that mean nothing without weights."""
SETS, RUNS = "What is scored", "With --weights"
"""Headings of the options that most people leave alone."""


@dataclass(frozen=True)
class Source:
    """What is scored: files against targets or alone, or weights on shards or a named set."""

    restored: Path | None
    target: Path | None
    weights: str | None = setting(None, WEIGHTS)
    data: Path | None = setting(None, SHARDS)
    degraded: Path | None = setting(
        None, "Folder of degraded inputs, scored too.", metavar="DIR", panel=SETS
    )
    sigma: float | None = setting(
        None,
        "With --weights and a folder of clean images: add Gaussian noise, unclipped.",
        metavar="LEVELS",
        panel=SETS,
    )
    no_reference: bool = setting(
        False, "Score photos that have no targets, by themselves.", panel=SETS
    )

    @property
    def subject(self) -> str:
        """What a second one may be compared with."""
        return str(self.restored) if self.weights is None else self.weights

    @property
    def is_plain(self) -> bool:
        """Whether files are compared with files."""
        named = self.weights is not None or self.data is not None
        return not (named or self.sigma or self.no_reference)

    def check(self) -> None:
        """UsageError for what does not go together."""
        from c2fdft_cli.engine.evaluate.sidd import are_blocks

        others = (self.target, self.degraded, self.weights, self.data)
        if self.no_reference and (self.restored is None or any(x is not None for x in others)):
            hint = "try: c2fdft eval PHOTOS --no-reference"
            raise UsageError("--no-reference takes one folder or image and no target", hint=hint)
        if self.data is not None and self.weights is None:
            raise UsageError("--data needs --weights")
        if self.sigma is not None and (self.weights is None or self.restored is None):
            raise UsageError("--sigma needs --weights and a folder of clean images")
        blocks = are_blocks(self.restored) or (self.weights is not None and are_blocks(self.data))
        blocks = blocks and self.sigma is None
        if blocks and self.degraded is not None:
            raise UsageError("--degraded cannot be used with SIDD blocks")
        if self.weights is not None and not blocks:
            if not (self.target is self.degraded is None):
                raise UsageError("--weights cannot be combined with TARGET or --degraded")
            if self.restored is not None and self.data is not None:
                raise UsageError("--data cannot be combined with a folder of images")
        files = self.weights is None and not self.no_reference
        if files and (self.restored is None or not (self.target or blocks)):
            hint = (
                "c2fdft eval RESTORED TARGET, c2fdft eval --weights CKPT SET, "
                "c2fdft eval --weights CKPT --data SHARDS, or c2fdft eval PHOTOS --no-reference"
            )
            raise UsageError("there is nothing to score", hint=f"try: {hint}")

    def named_pairs(self, seed: int) -> PairSource | None:
        """What weights are to restore, where it is not shards."""
        from c2fdft_cli.engine.evaluate.folder import open_folder
        from c2fdft_cli.engine.evaluate.sidd import are_blocks, open_blocks

        if self.weights is None:
            return None
        if self.sigma is None and (are_blocks(self.restored) or are_blocks(self.data)):
            return open_blocks(self.restored or self.data or Path(), self.target)
        return None if self.restored is None else open_folder(self.restored, self.sigma, seed)


@dataclass(frozen=True)
class Runs:
    """How weights restore what is scored."""

    images: int = setting(0, "Pairs to take, 0 for all.", metavar="N", low=0, panel=RUNS)
    seeds: int = setting(1, "Noise samples per image", metavar="N", low=1, high=1000, panel=RUNS)
    grid: tuple[int, ...] | None = setting(
        None,
        "Timesteps, such as 999,500 (default: the checkpoint's).",
        metavar="TIMES",
        parse=numbers("--grid", "999,500"),
        panel=RUNS,
    )
    self_ensemble: bool = setting(False, replace(SELF_ENSEMBLE, panel=RUNS))
    device: str = setting("auto", DEVICE)
    precision: str = setting("auto", PRECISION)
    seed: int = setting(0, replace(SEED, panel=RUNS))

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def given(self) -> list[str]:
        """The options of weights that differ from their defaults."""
        return [
            option_name(one)
            for one in fields(self)
            if one.name in _OF_WEIGHTS and getattr(self, one.name) != one.default
        ]


def job_of(
    subject: str,
    source: Source,
    runs: Runs,
    pairs: PairSource | None,
    options: EvalOptions,
    quiet: bool,
) -> Job[Scored, EvalResult]:
    """The evaluation of one folder of results, one file of blocks, or one checkpoint."""
    from c2fdft_cli.engine.evaluate.files import evaluate_files
    from c2fdft_cli.engine.evaluate.photos import evaluate_alone
    from c2fdft_cli.engine.evaluate.sidd import are_blocks, evaluate_blocks, open_blocks
    from c2fdft_cli.engine.evaluate.weights import WeightsOptions, evaluate_weights

    if source.weights is not None:
        options_of_weights = WeightsOptions(
            checkpoint=weights_file(subject, quiet),
            data=source.data,
            pairs=pairs,
            images=runs.images,
            seeds=runs.seeds,
            seed=runs.seed,
            timesteps=runs.grid,
            self_ensemble=runs.self_ensemble,
            device=runs.device,
            precision=runs.precision,
        )
        return evaluate_weights(options_of_weights, options)
    path = Path(subject)
    if source.no_reference:
        return evaluate_alone(path, options)
    if are_blocks(path):
        return evaluate_blocks(open_blocks(path, source.target), options)
    if source.target is None:
        raise UsageError("there is no target to compare with")
    return evaluate_files(path, source.target, options, source.degraded)
