"""What `c2fdft eval` scores: files with or without targets, or weights on shards or image sets."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from c2fdft_cli.cli.options import weights_file
from c2fdft_cli.engine.evaluate.options import WeightsOptions
from c2fdft_cli.errors import UsageError
from c2fdft_cli.settings import SHARDS, WEIGHTS, option_name, setting

if TYPE_CHECKING:
    from c2fdft_cli.engine.evaluate.job import EvalOptions, EvalResult
    from c2fdft_cli.engine.sampling.pairs import PairSource
    from c2fdft_cli.engine.sampling.scoring import Scored
    from c2fdft_cli.progress import Job

_OF_WEIGHTS = ("images", "seeds", "grid", "self_ensemble")
"""Options that have no effect without weights."""
SETS = "What is scored"
"""The heading of options that are rarely needed."""


@dataclass(frozen=True)
class Source:
    """What is scored: files with or without targets, or weights on shards or an image set."""

    restored: Path | None
    target: Path | None
    weights: str | None = setting(None, WEIGHTS)
    data: Path | None = setting(None, SHARDS)
    degraded: Path | None = setting(
        None, "Folder of the degraded inputs, to score them too.", metavar="DIR", panel=SETS
    )
    sigma: float | None = setting(
        None,
        "With --weights and a folder of clean images: add unclipped Gaussian noise of this "
        "standard deviation, in levels of 0..255.",
        metavar="LEVELS",
        panel=SETS,
    )
    no_reference: bool = setting(
        False, "Score photos that have no targets, with no-reference metrics.", panel=SETS
    )

    @property
    def subject(self) -> str:
        """The name of the results or weights, as side A of a comparison."""
        return str(self.restored) if self.weights is None else self.weights

    @property
    def is_plain(self) -> bool:
        """Whether image files are compared with image files."""
        named = self.weights is not None or self.data is not None
        return not (named or self.sigma or self.no_reference)

    def check(self) -> None:
        """Raise UsageError for arguments that cannot be combined."""
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
        """Open the image set or SIDD blocks that the weights are to restore; None for shards."""
        from c2fdft_cli.engine.evaluate.folder import open_folder
        from c2fdft_cli.engine.evaluate.sidd import are_blocks, open_blocks

        if self.weights is None:
            return None
        if self.sigma is None and (are_blocks(self.restored) or are_blocks(self.data)):
            return open_blocks(self.restored or self.data or Path(), self.target)
        return None if self.restored is None else open_folder(self.restored, self.sigma, seed)


def given(runs: WeightsOptions) -> list[str]:
    """List the options that have no effect without weights and differ from their defaults."""
    return [
        option_name(one)
        for one in fields(runs)
        if one.name in _OF_WEIGHTS and getattr(runs, one.name) != one.default
    ]


def job_of(
    subject: str,
    source: Source,
    runs: WeightsOptions,
    pairs: PairSource | None,
    options: EvalOptions,
    quiet: bool,
) -> Job[Scored, EvalResult]:
    """Make the job that evaluates a folder of results, a file of SIDD blocks, or a checkpoint."""
    from c2fdft_cli.engine.evaluate.files import evaluate_files
    from c2fdft_cli.engine.evaluate.photos import evaluate_alone
    from c2fdft_cli.engine.evaluate.sidd import are_blocks, evaluate_blocks, open_blocks
    from c2fdft_cli.engine.evaluate.weights import evaluate_weights

    if source.weights is not None:
        checkpoint = weights_file(subject, quiet)
        return evaluate_weights(checkpoint, runs, options, data=source.data, pairs=pairs)
    path = Path(subject)
    if source.no_reference:
        return evaluate_alone(path, options)
    if are_blocks(path):
        return evaluate_blocks(open_blocks(path, source.target), options)
    if source.target is None:
        raise UsageError("there is no target to compare with")
    return evaluate_files(path, source.target, options, source.degraded)
