"""Validation within a training: whole images, EMA weights, the sampler's grid."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import torch

from c2fdft_cli.core.bands import Banded
from c2fdft_cli.core.metrics import PROTOCOLS
from c2fdft_cli.data.images import save_rgb8
from c2fdft_cli.engine.checkpoint import alpha_bar_of_recipe
from c2fdft_cli.engine.loading import ValidationPairs
from c2fdft_cli.engine.restorer import Restorer, to_uint8
from c2fdft_cli.engine.run_state import RunState
from c2fdft_cli.engine.runtime import wait_for_all
from c2fdft_cli.engine.train_events import Notice, TrainEvent, Validated
from c2fdft_cli.engine.train_options import TrainOptions
from c2fdft_cli.engine.train_tensorboard import TensorBoard
from c2fdft_cli.engine.validation import (
    PairImages,
    Row,
    mean_scores,
    restore_pairs,
    score_restored,
    spread_indices,
)

SAMPLES = 2
NARROW = 32  # rows


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
        pairs: ValidationPairs | None,
        state: RunState,
        board: TensorBoard,
    ) -> None:
        self._options = options
        self._pairs = pairs
        self._state = state
        self._board = board

    def validate(self, step: int) -> Generator[TrainEvent, None, Validated | None]:
        """Score the EMA weights on the main process while the others wait.

        Without enough memory beside the training it takes narrow bands, and else no score.
        """
        scored = None
        if self._pairs is not None and len(self._pairs):
            for rows in (None, NARROW):
                try:
                    scored = self._score(step, self._pairs, rows)
                    break
                except torch.OutOfMemoryError:
                    torch.cuda.empty_cache()
            if scored is None:
                yield Notice(f"{step}: no memory to restore the validation images; no score")
            else:
                yield scored
            if scored is not None and scored.is_best:
                self._state.best_psnr = scored.psnr
                self._state.save_best(step)
        wait_for_all(self._options.runtime)
        return scored

    def _score(self, step: int, pairs: ValidationPairs, rows: int | None) -> Validated:
        options, recipe = self._options, self._options.recipe
        protocol = PROTOCOLS[recipe.train.protocol]
        restorer = Restorer(
            Banded(self._state.ema, rows, options.runtime.dtype),
            alpha_bar_of_recipe(recipe.diffusion),
            options.grid,
            options.runtime,
            seed=recipe.train.seed,
        )
        scored: list[Row] = []
        chosen = spread_indices(len(pairs), recipe.train.validation_images)
        for number, images in enumerate(restore_pairs(pairs, restorer, chosen)):
            scores = score_restored(images.restored, images.gt, protocol)
            scored.append(Row(images.name, scores.psnr, scores.ssim))
            if number < SAMPLES:
                self._save_sample(step, images)
        mean = mean_scores(scored)
        best = self._state.best_psnr
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
            best is None or mean["psnr"] > best,
        )

    def _save_sample(self, step: int, images: PairImages) -> None:
        """Degraded | restored | target, side by side."""
        strip = torch.cat([images.lq, to_uint8(images.restored), images.gt], dim=-1)
        name = Path(images.name).name
        pixels = strip[0].permute(1, 2, 0).contiguous().numpy()
        save_rgb8(self._options.run.samples / f"{name}-{step:09d}.png", pixels)
        self._board.sample(name, step, pixels)
