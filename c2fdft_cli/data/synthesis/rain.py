"""Rain as an additive grey layer, O = min(255, B + S): one streak mask per image, or many.

Scene and streaks may be behind a veil: the light that distant drops scatter towards the camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np

from c2fdft_cli.data.pixels import Doubles, Pixels
from c2fdft_cli.data.synthesis.camera_rain import add_camera_rain
from c2fdft_cli.data.synthesis.model import Model
from c2fdft_cli.data.synthesis.options import IntegerRange, Number, Range, within
from c2fdft_cli.data.synthesis.streak_process import StreakStyle, render
from c2fdft_cli.data.synthesis.streaks import StreakBank
from c2fdft_cli.vocabulary import Task

# These and the numbers in the styles below were chosen from the statistics of the rain layers in
# the test sets of Rain100L and Rain100H: docs/synthesis.md, "Calibration", compares both.
HEAVY_TURN, HEAVY_TILT = 8.0, 15.0
LAYER_SCATTER, LAYERED_LEVEL = 6.0, 37.0
WHOLE_LAYERS = 0.5
"""Share of images with heavy rain that use one whole layer of a bank, if it has any."""
STRETCH = 0.2
"""Largest logarithm of the factors that stretch such a layer."""


@dataclass(frozen=True)
class RainModel(Model):
    """Rain with the statistics of Rain100L, and in a share of the images those of Rain100H.

    Attributes:
        strength: range of the amplitude factor, 1 being a bank's own brightness.
        heavy: share of images, 0..1, with rain of high intensity (0: like Rain100L, 1: like
            Rain100H).
        heavy_fields: range of the number of a bank's masks that are summed for heavy rain.
        turn: a bank's mask is rotated by up to this many degrees.
        across: range of the factor that stretches a bank's rotated mask horizontally, sampled
            uniformly in its logarithm.
        along: the same, vertically. Rain100L's masks are about 0.85 x 1.0 in its landscape and
            0.57 x 1.5 in its portrait images; [1, 1] and no turn keep a mask's pixels unchanged.
        lean: largest tilt of synthetic streaks from the vertical, in degrees.
        cover: range of the density of synthetic light rain, the share of pixels that it covers,
            sampled uniformly in its logarithm.
        layers: range of how many synthetic layers of heavy rain overlap, each with its own scale,
            direction and brightness; 0 is one scale in one direction or two, as in Rain100H.
        veil: range of the opacity of the veil where it is densest.
        veil_share: share of images with a veil in front of the scene and its streaks.
        camera_share: share of images with rain as in photographs; of the options above only those
            of tilt and veil concern it.
    """

    task: ClassVar[Task] = "derain"
    uses_streaks: ClassVar[bool] = True

    strength: Annotated[Range, within(0, 4)] = (0.6, 1.15)
    heavy: Annotated[Number, within(0, 1)] = 0.05
    heavy_fields: Annotated[IntegerRange, within(2, 64)] = (6, 14)
    turn: Annotated[Number, within(0, 45)] = 25.0
    across: Annotated[Range, within(0.25, 4)] = (0.75, 1.2)
    along: Annotated[Range, within(0.25, 4)] = (0.85, 1.5)
    lean: Annotated[Number, within(0, 60)] = 30.0
    cover: Annotated[Range, within(0.001, 0.99)] = (0.09, 0.44)
    layers: Annotated[IntegerRange, within(0, 8)] = (0, 0)
    veil: Annotated[Range, within(0, 0.9)] = (0.05, 0.35)
    veil_share: Annotated[Number, within(0, 1)] = 0.0
    camera_share: Annotated[Number, within(0, 1)] = 0.0

    def options_in_use(self, *, bank: bool) -> frozenset[str]:
        """Return the options of those kinds of rain that can occur."""
        by_formula = not bank or self.heavy > 0  # half of a bank's heavy rain is, too
        needed = {
            "heavy_fields": bank and self.heavy > 0,
            "layers": self.heavy > 0,
            "lean": by_formula or self.camera_share > 0,
            "cover": not bank and self.heavy < 1,
            "veil": self.veil_share > 0,
        } | dict.fromkeys(("turn", "across", "along"), bank)
        in_use = super().options_in_use(bank=bank)
        if self.camera_share == 1:
            in_use &= {"lean", "veil", "veil_share", "camera_share"}
        return in_use - {option for option, use in needed.items() if not use}

    def degrade(
        self, gt: Pixels, rng: np.random.Generator, streaks: StreakBank | None = None
    ) -> Pixels:
        """Return O = min(255, B + S) for a newly sampled S, or rain as in photographs.

        A share of either is behind a veil.
        """
        # No random number is consumed if a share is 0, so that earlier seeds keep their rain.
        if self.camera_share > 0 and rng.random() < self.camera_share:
            rainy = add_camera_rain(gt, self.lean, rng)
        else:
            layer = rain_layer(self, rng, gt.shape[0], gt.shape[1], streaks)
            rainy = np.minimum(gt.astype(np.uint16) + layer[:, :, None], 255).astype(np.uint8)
        if self.veil_share > 0 and rng.random() < self.veil_share:
            return add_veil(rainy, rng.uniform(*self.veil), rng)
        return rainy

    def stored_options(self) -> dict[str, Any]:
        """Return the options, without `camera_share` if it is 0, as shards before it had them."""
        options = super().stored_options()
        if not self.camera_share:
            del options["camera_share"]
        return options


def add_veil(rainy: Pixels, opacity: float, rng: np.random.Generator) -> Pixels:
    """Return T O + (1 - T) A, A a light grey, 1 - T a smooth map that is at most `opacity`.

    Li et al., "Heavy rain image restoration", CVPR 2019, equation 3.
    """
    h, w = rainy.shape[:2]
    light = rng.uniform(160.0, 235.0)
    y, x = np.arange(h)[:, None], np.arange(w)[None]
    waves = np.zeros((h, w))
    for _ in range(2):
        way, phase = rng.uniform(0.0, 2 * math.pi, 2)
        turns = 2 * math.pi / np.exp(rng.uniform(math.log(150.0), math.log(900.0)))
        waves += np.cos(turns * (math.cos(way) * x + math.sin(way) * y) + phase)
    # The sum of two waves is in -2..2, so the share is between half the opacity and all of it.
    share = (opacity * (0.75 + waves / 8))[:, :, None]
    veiled: Pixels = np.rint(rainy * (1 - share) + light * share).astype(np.uint8)
    return veiled


def rain_layer(
    model: RainModel,
    rng: np.random.Generator,
    h: int,
    w: int,
    streaks: StreakBank | None = None,
) -> Pixels:
    """Sample the layer S, uint8 [h, w], from a bank's masks or, without a bank, by formula."""
    heavy = bool(rng.random() < model.heavy)
    strength = rng.uniform(*model.strength)
    # No random number is consumed if there are no layers, so that earlier seeds keep their rain.
    if heavy and streaks is not None and streaks.layers and rng.random() < WHOLE_LAYERS:
        layer = _whole_layer(rng, h, w, streaks)
    # A bank's streaks are short, so half of the heavy images get long ones like Rain100H's.
    elif streaks is None or (heavy and rng.random() < 0.5):
        styles = heavy_styles(model, rng) if heavy else [light_style(model, rng)]
        layer = sum((render(style, rng, h, w) for style in styles), np.zeros((h, w)))
    else:
        layer = _bank_layer(model, rng, h, w, streaks, heavy=heavy)
    return np.minimum(np.rint(layer * strength), 255).astype(np.uint8)


def _bank_layer(
    model: RainModel, rng: np.random.Generator, h: int, w: int, bank: StreakBank, *, heavy: bool
) -> Doubles:
    """Return one mask for light rain, or the sum of several, slightly rotated, for heavy rain."""
    turn = min(model.turn, HEAVY_TURN) if heavy else model.turn
    count = rng.integers(*(model.heavy_fields if heavy else (1, 1)), endpoint=True)
    layer = np.zeros((h, w))
    for _ in range(count):
        across, along = (
            float(np.exp(rng.uniform(*np.log(r)))) for r in (model.across, model.along)
        )
        layer += bank.sample(rng, h, w, turn=turn, across=across, along=along)
    return layer


def _whole_layer(rng: np.random.Generator, h: int, w: int, bank: StreakBank) -> Doubles:
    """Return a layer, in half of the cases slightly rotated and stretched, as a bank has few."""
    if rng.random() < 0.5:
        return bank.sample(rng, h, w, layer=True).astype(np.float64)
    across, along = np.exp(rng.uniform(-STRETCH, STRETCH, 2))
    cut = bank.sample(rng, h, w, turn=HEAVY_TURN, across=across, along=along, layer=True)
    return cut.astype(np.float64)


def light_style(model: RainModel, rng: np.random.Generator) -> StreakStyle:
    """Sample one direction, scale and brightness for the whole image, as in Rain100L."""
    scale = rng.lognormal(0.0, 0.3)
    return StreakStyle(
        tilt=float(rng.triangular(-model.lean, 0.0, model.lean)) if model.lean else 0.0,
        jitter=1.5,
        coverage=float(np.exp(rng.uniform(*np.log(model.cover)))),
        level=35.0 * rng.lognormal(0.0, 0.35),
        length=20.0 * scale * rng.lognormal(0.0, 0.3),
        width=1.6 * math.sqrt(scale),
        flat=rng.uniform(0.0, 0.4),
    )


def heavy_styles(model: RainModel, rng: np.random.Generator) -> list[StreakStyle]:
    """Sample long, even, overlapping streaks: one direction, two (40 %), or the model's layers."""
    if model.layers[1] > 0:
        layers = int(rng.integers(*model.layers, endpoint=True))
        if layers > 0:
            return layered_styles(layers, min(model.lean, HEAVY_TILT), rng)
    coverage = rng.uniform(0.75, 0.98)
    tilt = min(model.lean, HEAVY_TILT)
    first = StreakStyle(
        tilt=rng.uniform(-tilt, tilt),
        jitter=2.0,
        coverage=coverage,
        level=37.0 * rng.lognormal(0.0, 0.25),
        length=45.0 * rng.lognormal(0.0, 0.4),
        width=1.8 * rng.lognormal(0.0, 0.2),
        flat=rng.uniform(0.5, 1.0),
    )
    if rng.random() > 0.4:
        return [first]
    # Two independent layers leave (1 - half)^2 of the picture clear, as much as one of `coverage`.
    half = 1.0 - math.sqrt(1.0 - coverage)
    other = replace(first, tilt=rng.uniform(-tilt, tilt), coverage=half)
    return [replace(first, coverage=half), other]


def layered_styles(layers: int, tilt: float, rng: np.random.Generator) -> list[StreakStyle]:
    """Sample layers from far (thin, short, dense, dim) to near (wide, long, sparse, bright).

    Their directions scatter around one wind direction; together they cover as much of the picture
    as the rain of Rain100H.
    """
    clear = 1.0 - rng.uniform(0.75, 0.98)
    share = rng.dirichlet(np.full(layers, 3.0))
    wind = rng.uniform(-tilt, tilt)
    level = LAYERED_LEVEL * rng.lognormal(0.0, 0.25)
    styles = []
    for part, near in zip(share, np.sort(rng.uniform(-1.0, 1.0, layers)), strict=True):
        scale = 2.0**near
        styles.append(
            StreakStyle(
                tilt=wind + rng.normal(0.0, LAYER_SCATTER),
                jitter=rng.uniform(1.0, 3.0),
                # The parts sum to 1, so the product of what each layer leaves clear is `clear`.
                coverage=1.0 - clear ** float(part),
                level=level * scale**0.5,
                length=42.0 * scale * rng.lognormal(0.0, 0.3),
                width=1.7 * math.sqrt(scale) * rng.lognormal(0.0, 0.15),
                flat=rng.uniform(0.4, 1.0),
            )
        )
    return styles
