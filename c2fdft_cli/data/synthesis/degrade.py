"""Degrade clean images for training pairs (docs/synthesis.md).

All random numbers come from the generator that is passed in, so a crop's degradation is a function
of the generator's seed, such as (seed, step, sample).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.data.synthesis.blur import BlurModel
from c2fdft_cli.data.synthesis.model import Model, Unclipped
from c2fdft_cli.data.synthesis.noise import NoiseModel
from c2fdft_cli.data.synthesis.rain import RainModel
from c2fdft_cli.data.synthesis.streaks import StreakBank
from c2fdft_cli.errors import UsageError
from c2fdft_cli.validation import InvalidValuesError, validate
from c2fdft_cli.words import did_you_mean

MODELS: dict[str, type[Model]] = {
    "rain": RainModel,
    "noise": NoiseModel,
    "blur": BlurModel,
}
"""The model of each degradation."""


def parse_model(
    kind: str, options: Mapping[str, object] | None = None, streaks: Path | None = None
) -> Model:
    """Make a model from plain values, such as those of a recipe.

    Args:
        kind: a key of `MODELS`.
        options: the model's attributes; a range may be one number or [low, high].
        streaks: the folder of streak masks to use with it, which is not opened here.

    Raises:
        UsageError: an unknown kind or option, a wrong type, a value outside its limits; or streak
            masks although the degradation is not rain.
    """
    if kind not in MODELS:
        hint = did_you_mean(kind, MODELS) or f"use one of: {', '.join(MODELS)}"
        raise UsageError(f"there is no degradation {kind!r}", hint=hint)
    try:
        model = validate(MODELS[kind], options or {})
    except InvalidValuesError as error:
        raise UsageError(f"synthetic {kind}: {error}") from None
    if streaks is not None and not model.uses_streaks:
        hint = "omit the folder of streak masks"
        raise UsageError("streak masks can be used only for rain", where=streaks, hint=hint)
    return model


def without_effect(model: Model, options: Iterable[str], *, bank: bool) -> tuple[str, ...]:
    """Return a notice if some of these options change no picture, given the others' values.

    Args:
        model: the degradation.
        options: names of options that the user has set.
        bank: rendered streak masks are given.
    """
    idle = sorted(set(options) - model.options_in_use(bank=bank))
    if not idle:
        return ()
    what = f"{', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect"
    return (f"{what} with the other settings: docs/synthesis.md lists what each option needs",)


@dataclass(frozen=True)
class Degradation:
    """A degradation with what it needs; it can be sent to worker processes.

    Args:
        model: the degradation.
        streaks: as for `Model.degrade`.
    """

    model: Model
    streaks: StreakBank | None = None

    @classmethod
    def open(
        cls, kind: str, options: Mapping[str, object] | None, folder: Path | None
    ) -> Degradation:
        """Make a degradation as `parse_model` does, with the streak masks of a folder, if given.

        Raises:
            UsageError: as `parse_model`.
            DataError: the folder has no usable masks.
        """
        model = parse_model(kind, options, folder)
        return cls(model, None if folder is None else StreakBank(folder))

    @property
    def margin(self) -> int:
        """How many px of context a crop needs on each side: degrade it with them, then cut."""
        return self.model.margin

    @property
    def patch_dtype(self) -> type[np.uint8 | np.int16]:
        """A type that holds every training patch: int16 if some are not clipped to 0..255."""
        return np.int16 if self.model.may_be_unclipped else np.uint8

    def __call__(self, gt: Pixels, rng: np.random.Generator) -> Pixels:
        """Degrade an image; arguments and result as for `Model.degrade`."""
        return self.model.degrade(gt, rng, self.streaks)

    def patch(self, gt: Pixels, rng: np.random.Generator) -> Pixels | Unclipped:
        """Degrade a training patch; unlike those of images, its values may be unclipped int16."""
        return self.model.degrade_patch(gt, rng, self.streaks)
