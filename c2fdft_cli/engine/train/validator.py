"""Validation within a training: whole images, EMA weights, the recipe's timesteps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.engine.sampling.executor import Executor, Restored
from c2fdft_cli.engine.sampling.pairs import PairSource
from c2fdft_cli.engine.sampling.scoring import (
    Scored,
    Scorer,
    mean_scores,
    restore_and_score,
    spread_indices,
)
from c2fdft_cli.engine.train.events import Notice, TrainEvent, Validated
from c2fdft_cli.engine.train.options import TrainOptions
from c2fdft_cli.engine.train.state import RunState
from c2fdft_cli.engine.train.tensorboard import TensorBoard
from c2fdft_cli.engine.weights.build import alpha_bar_of_recipe
from c2fdft_cli.errors import ResourceError
from c2fdft_cli.execution.distributed import any_rank_after_validation
from c2fdft_cli.execution.memory import is_out_of_memory
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.metrics.protocols import PROTOCOLS
from c2fdft_cli.signals import StoppedError, StopRequest

SAMPLES = 2
MAX_LABEL_BYTES = 240
"""Of the 255 that a file's name may have on most systems, without step and suffix."""


class Validator:
    """Restores the validation images and keeps the best checkpoint.

    Args:
        options: of the training.
        pairs: the validation split, or None where there is none.
        state: writes best.pt.
        board: shows the sample restorations.
    """

    def __init__(
        self,
        options: TrainOptions,
        pairs: PairSource | None,
        state: RunState,
        board: TensorBoard,
    ) -> None:
        self._options = options
        self._pairs = pairs
        self._state = state
        self._board = board

    @property
    def images(self) -> int:
        """How many pairs a score is the mean of."""
        wanted = self._options.recipe.train.validation_images
        return len(spread_indices(len(self._pairs or ()), wanted))

    def validate(
        self, step: int, request: StopRequest
    ) -> Generator[TrainEvent, None, tuple[Validated | None, bool]]:
        """Score the EMA weights on the main process while the others wait.

        Without enough memory beside the training for the narrowest strips there is no score.

        Args:
            step: finished iterations.
            request: ends it, within a moment; the step is then still to be scored.

        Returns:
            The score, and whether it was ended, which is the same in all processes.
        """
        scored, ended = None, False
        if self._pairs is not None and len(self._pairs):
            try:
                scored = self._score(step, self._pairs, request)
            except StoppedError:
                ended = True
            except Exception as error:  # torch has several kinds of it
                if not is_out_of_memory(error):
                    raise
            if scored is not None:
                yield scored
            elif not ended:
                yield Notice(f"{step}: no memory to restore the validation images; no score")
            if scored is not None and scored.is_best:
                self._state.best_psnr = scored.psnr
                self._state.save_best(step)
        return scored, any_rank_after_validation(ended)

    def _score(self, step: int, pairs: PairSource, request: StopRequest) -> Validated:
        options, recipe = self._options, self._options.recipe
        protocol = PROTOCOLS[recipe.train.protocol]
        executor = Executor(
            StripNetwork(self._state.ema, dtype=options.runtime.dtype),
            alpha_bar_of_recipe(recipe.diffusion),
            options.grid,
            options.runtime,
            eta=recipe.sampling.eta,
            # the same noise each time, so that scores differ by the weights alone
            seed=recipe.train.seed,
        )

        def restore(lq: Tensor, names: Sequence[str]) -> Restored:
            try:
                # Only here does a ResourceError cost no more than the score: a full disk, met by a
                # sample or by best.pt, has to end the training.
                return executor(lq, names, lambda _: request.check())
            except ResourceError as error:
                raise MemoryError(str(error)) from error

        chosen = spread_indices(len(pairs), recipe.train.validation_images)
        labels = sample_labels([pairs.names[i] for i in chosen[:SAMPLES]])
        scorer = Scorer(protocol, pictures=True)
        scored: list[Scored] = []
        for one in restore_and_score(pairs, chosen, [restore], scorer):
            scored.append(replace(one, pictures=None))  # those of all images would fill the memory
            if one.name in labels:
                self._save_sample(step, one, labels[one.name])
        mean = mean_scores(scored)
        best = self._state.best_psnr
        # before best.pt is written, which carries them
        self._state.metrics = {
            "step": step,
            "protocol": protocol.name,
            "images": len(scored),
            **mean,
        }
        return Validated(
            step,
            mean["psnr"],
            mean["ssim"],
            protocol.name,
            len(scored),
            not math.isnan(mean["psnr"]) and (best is None or mean["psnr"] > best),
        )

    def _save_sample(self, step: int, scored: Scored, label: str) -> None:
        """Degraded | restored | target, side by side, where the record has its pictures."""
        views = scored.pictures
        if views is None or views.degraded is None or views.target is None:
            return
        pixels = np.concatenate([views.degraded, views.restored, views.target], axis=1)
        save_rgb8(self._options.run.samples / f"{label}-{step:09d}.png", pixels)
        self._board.sample(label, step, pixels)


def sample_labels(pairs: Sequence[str]) -> dict[str, str]:
    """How the files of samples begin, by pair: as the pair's image is called.

    With its folders where two pairs share that name, as of two scenes. Cut where, with step and
    suffix, it would be too long for a file, which would end the training.
    """
    counts = Counter(Path(pair).name for pair in pairs)
    names = {
        pair: Path(pair).name if counts[Path(pair).name] == 1 else pair.replace("/", "_")
        for pair in pairs
    }
    return {
        pair: name.encode()[:MAX_LABEL_BYTES].decode(errors="ignore")
        for pair, name in names.items()
    }
