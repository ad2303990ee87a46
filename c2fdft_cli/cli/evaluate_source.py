"""What `c2fdft eval` scores: files against targets or alone, weights on shards or on named sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import weights_file
from c2fdft_cli.errors import UsageError
from c2fdft_cli.vocabulary import parse_numbers

if TYPE_CHECKING:
    from c2fdft_cli.engine.evaluate.job import EvalOptions, EvalResult
    from c2fdft_cli.engine.sampling.pairs import PairSource
    from c2fdft_cli.engine.sampling.scoring import Scored
    from c2fdft_cli.progress import Job


@dataclass(frozen=True)
class Source:
    """What is scored: files against targets or alone, or weights on shards or named pairs."""

    restored: Path | None
    target: Path | None
    degraded: Path | None
    weights: str | None
    alone: bool
    data: Path | None
    pairs: PairSource | None
    sigma: float | None
    images: int
    seeds: int
    seed: int
    grid: str | None
    device: str
    precision: str

    @property
    def subject(self) -> str:
        """What a second one may be compared with."""
        return self.weights or str(self.restored)


def check_source(
    restored: Path | None,
    target: Path | None,
    degraded: Path | None,
    weights: str | None,
    data: Path | None,
    no_reference: bool,
    sigma: float | None,
    of_weights: Mapping[str, object],
) -> None:
    """UsageError for what does not go together; `of_weights`: options that --weights alone has."""
    from c2fdft_cli.engine.evaluate.sidd import are_blocks

    others = (target, degraded, weights, data)
    if no_reference and (restored is None or any(one is not None for one in others)):
        hint = "try: c2fdft eval PHOTOS --no-reference"
        raise UsageError("--no-reference takes one folder or image and no target", hint=hint)
    if sigma is not None and (weights is None or restored is None):
        raise UsageError("--sigma needs --weights and a folder of clean images")
    for option, value in of_weights.items():
        if weights is None and value is not None:
            raise UsageError(f"{option} needs --weights")
    blocks = are_blocks(restored) or (weights is not None and are_blocks(data))
    blocks = blocks and sigma is None
    if blocks and degraded is not None:
        raise UsageError("--degraded cannot be used with SIDD blocks")
    if weights is not None and not blocks and not (target is degraded is None):
        raise UsageError("--weights cannot be combined with TARGET or --degraded")
    if weights is not None and not blocks and restored is not None and data is not None:
        raise UsageError("--data cannot be combined with a folder of images")
    if weights is None and not no_reference and (restored is None or not (target or blocks)):
        hint = (
            "c2fdft eval RESTORED TARGET, c2fdft eval --weights CKPT SET, "
            "c2fdft eval --weights CKPT --data SHARDS, or c2fdft eval PHOTOS --no-reference"
        )
        raise UsageError("there is nothing to score", hint=f"try: {hint}")


def named_pairs(
    folder: Path | None, target: Path | None, data: Path | None, sigma: float | None, seed: int
) -> PairSource | None:
    """What weights are to restore, where it is not shards."""
    from c2fdft_cli.engine.evaluate.folder import open_folder
    from c2fdft_cli.engine.evaluate.sidd import are_blocks, open_blocks

    if sigma is None and (are_blocks(folder) or are_blocks(data)):
        return open_blocks(folder or data or Path(), target)
    return None if folder is None else open_folder(folder, sigma, seed)


def job_of(
    subject: str, source: Source, options: EvalOptions, quiet: bool
) -> Job[Scored, EvalResult]:
    """The evaluation of one folder of results, one file of blocks, or one checkpoint."""
    from c2fdft_cli.engine.evaluate.files import evaluate_files
    from c2fdft_cli.engine.evaluate.photos import evaluate_alone
    from c2fdft_cli.engine.evaluate.sidd import are_blocks, evaluate_blocks, open_blocks
    from c2fdft_cli.engine.evaluate.weights import WeightsOptions, evaluate_weights

    if source.weights:
        options_of_weights = WeightsOptions(
            checkpoint=weights_file(subject, quiet),
            data=source.data,
            pairs=source.pairs,
            images=source.images,
            seeds=source.seeds,
            seed=source.seed,
            timesteps=_timesteps(source.grid),
            device=source.device,
            precision=source.precision,
        )
        return evaluate_weights(options_of_weights, options)
    path = Path(subject)
    if source.alone:
        return evaluate_alone(path, options)
    if are_blocks(path):
        return evaluate_blocks(open_blocks(path, source.target), options)
    if source.target is None:
        raise UsageError("there is no target to compare with")
    return evaluate_files(path, source.target, options, source.degraded)


def _timesteps(text: str | None) -> tuple[int, ...] | None:
    return None if text is None else tuple(parse_numbers("--grid", text, "999,500"))


def next_command(source: Source, protocol: str | None) -> str:
    """The same with a page to look at."""
    words: list[object] = ["eval"]
    words += [] if source.weights is None else ["--weights", source.weights]
    words += [] if source.sigma is None else ["--sigma", f"{source.sigma:g}"]
    words += [] if source.grid is None else ["--grid", source.grid]
    words += [] if source.images == 0 else ["--images", source.images]
    words += [] if source.seeds == 1 else ["--seeds", source.seeds]
    words += [] if source.seed == 0 else ["--seed", source.seed]
    words += [path for path in (source.restored, source.target) if path is not None]
    words += [] if source.data is None else ["--data", source.data]
    words += ["--no-reference"] if source.alone else []
    words += [] if protocol is None else ["--protocol", protocol]
    return console.command(*words, "--report", "report")
