"""Validation within a training: whole images, EMA weights, the recipe's timesteps."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.engine.sampling.executor import Executor, Restored
from c2fdft_cli.engine.sampling.pairs import PairSource, ShardPairs, open_validation
from c2fdft_cli.engine.sampling.sampler import Sampler
from c2fdft_cli.engine.sampling.scoring import (
    Scored,
    Scorer,
    mean_scores,
    refuse_small_pairs,
    restore_and_score,
    spread_indices,
)
from c2fdft_cli.engine.train.events import Notice, TrainEvent, Validated
from c2fdft_cli.engine.train.plan import TrainPlan
from c2fdft_cli.engine.train.saving import RunState
from c2fdft_cli.engine.train.tensorboard import TensorBoard
from c2fdft_cli.engine.weights.build import alpha_bar_of_recipe
from c2fdft_cli.errors import ResourceError
from c2fdft_cli.execution.distributed import any_rank_after_validation
from c2fdft_cli.execution.memory import is_out_of_memory
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.metrics.protocols import PROTOCOLS
from c2fdft_cli.recipe.schema import Recipe
from c2fdft_cli.signals import StoppedError, StopRequest

SAMPLES = 2
MAX_LABEL_BYTES = 240
"""Of the 255 bytes that a file name may have on most systems; the rest is for step and suffix."""

_NOT_ALLOWED = re.compile(r'[<>:"/\\|?*]')


def scorable_validation(folder: Path, recipe: Recipe) -> ShardPairs | None:
    """Open the validation split of a shard folder; None if there is none.

    Raises:
        DataError: it cannot be opened, or one of the images that the recipe's validation uses is
            too small to be scored. That would end the training at its first validation.
    """
    pairs = open_validation(folder, recipe)
    if pairs is not None:
        chosen = spread_indices(len(pairs), recipe.train.validation_images)
        refuse_small_pairs(pairs, chosen, PROTOCOLS[recipe.train.protocol])
    return pairs


class Validator:
    """Restores and scores the validation images, if any, and saves the best checkpoint."""

    def __init__(
        self, plan: TrainPlan, pairs: PairSource | None, state: RunState, board: TensorBoard
    ) -> None:
        self._plan = plan
        self._pairs = pairs
        self._state = state
        self._board = board

    @property
    def images(self) -> int:
        """The number of validation images that a score is the mean of."""
        wanted = self._plan.recipe.train.validation_images
        return len(spread_indices(len(self._pairs or ()), wanted))

    def validate(
        self, step: int, request: StopRequest
    ) -> Generator[TrainEvent, None, tuple[Validated | None, bool]]:
        """Score the EMA weights in the main process while the others wait.

        There is no score if memory, next to the training's own, is too small even for the
        narrowest strips.

        Args:
            step: number of finished iterations.
            request: a stop request; it ends the validation almost at once, and the score of this
                step remains due.

        Returns:
            The score, or None, and whether a stop request ended the validation (the same in all
            processes).
        """
        scored, ended = None, False
        if self._pairs is not None and len(self._pairs):
            try:
                scored = self._score(step, self._pairs, request)
            except StoppedError:
                ended = True
            except Exception as error:  # torch has several types of out-of-memory errors
                if not is_out_of_memory(error):
                    raise
            if scored is not None:
                yield scored
            elif not ended:
                yield Notice(
                    f"step {step}: not enough memory to restore the validation images, "
                    "so there is no score"
                )
            if scored is not None and scored.is_best:
                self._state.best_psnr = scored.psnr
                self._state.save_best(step)
        return scored, any_rank_after_validation(ended)

    def _score(self, step: int, pairs: PairSource, request: StopRequest) -> Validated:
        plan, recipe = self._plan, self._plan.recipe
        protocol = PROTOCOLS[recipe.train.protocol]
        executor = Executor(
            StripNetwork(self._state.ema, dtype=plan.runtime.dtype),
            Sampler(
                alpha_bar_of_recipe(recipe.diffusion),
                plan.timesteps,
                recipe.sampling.eta,
                # the same noise each time, so that scores differ only because of the weights
                recipe.train.seed,
            ),
            plan.runtime,
        )

        def restore(lq: Tensor, names: Sequence[str]) -> Restored:
            try:
                # Only a ResourceError of the restoration means that there is no score. Elsewhere,
                # for example if the disk is full for a sample or best.pt, it ends the training.
                return executor(lq, names, lambda _: request.check())
            except ResourceError as error:
                raise MemoryError(str(error)) from error

        chosen = spread_indices(len(pairs), recipe.train.validation_images)
        labels = sample_labels([pairs.names[i] for i in chosen[:SAMPLES]])
        scorer = Scorer(protocol, pictures=True)
        scored: list[Scored] = []
        for one in restore_and_score(pairs, chosen, [restore], scorer):
            scored.append(replace(one, pictures=None))  # all pictures together need much memory
            if one.name in labels:
                self._save_sample(step, one, labels[one.name])
        mean = mean_scores(scored)
        best = self._state.best_psnr
        # set before best.pt is written, which contains them
        about = {"step": step, "protocol": protocol.name, "images": len(scored)}
        self._state.metrics = {**about, **mean}
        return Validated(
            step,
            mean["psnr"],
            mean["ssim"],
            protocol.name,
            len(scored),
            not math.isnan(mean["psnr"]) and (best is None or mean["psnr"] > best),
        )

    def _save_sample(self, step: int, scored: Scored, label: str) -> None:
        """Write degraded, restored and target image side by side, if the record has all three."""
        views = scored.pictures
        if views is None or views.degraded is None or views.target is None:
            return
        pixels = np.concatenate([views.degraded, views.restored, views.target], axis=1)
        save_rgb8(self._plan.run.samples / f"{label}-{step:09d}.png", pixels)
        self._board.sample(label, step, pixels)


def sample_labels(pairs: Sequence[str]) -> dict[str, str]:
    """Return the label that starts the names of a pair's sample files, by pair.

    The label is the file name of the pair's image. If two pairs share it (images of two scenes,
    for example), it includes their folders. Failing to write a sample ends the training, so the
    label is truncated if a file name with step and suffix would be too long, and characters that
    Windows does not allow in file names are replaced: the shards may come from another system.
    """
    counts = Counter(PurePosixPath(pair).name for pair in pairs)
    names = {
        pair: PurePosixPath(pair).name if counts[PurePosixPath(pair).name] == 1 else pair
        for pair in pairs
    }
    labels = {pair: _label(name) for pair, name in names.items()}
    uses = Counter(labels.values())
    return {
        pair: label if uses[label] == 1 else _label(f"{number}-{names[pair]}")
        for number, (pair, label) in enumerate(labels.items())
    }


def _label(name: str) -> str:
    return _NOT_ALLOWED.sub("_", name).encode()[:MAX_LABEL_BYTES].decode(errors="ignore")
