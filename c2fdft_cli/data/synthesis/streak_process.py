"""Rain streaks by formula: a Poisson process of streaks that share a direction and a scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from c2fdft_cli.data.pixels import Doubles

# Chosen from the rain layers of the test sets of Rain100L and Rain100H: docs/synthesis.md,
# "Calibration".
LENGTH_SPREAD, WIDTH_SPREAD, LEVEL_SPREAD = 0.45, 0.4, 0.7
LENGTH_CAP, WIDTH_CAP = 3.0, 4.5


@dataclass(frozen=True)
class StreakStyle:
    """What the streaks of one synthetic mask have in common (px, degrees).

    Attributes:
        tilt: angle from the vertical in degrees, positive towards the upper right.
        jitter: standard deviation of one streak's tilt around it, in degrees.
        coverage: expected share of covered pixels, below 1.
        level: mean level of a covered pixel, in the unit of the layer.
        length: median length in px.
        width: median width in px.
        flat: 0 for streaks that swell and fade, 1 for an even level from end to end.
    """

    tilt: float
    jitter: float
    coverage: float
    level: float
    length: float
    width: float
    flat: float


def render(style: StreakStyle, rng: np.random.Generator, h: int, w: int) -> Doubles:
    """Rasterise a Poisson process of streaks, float [h, w] >= 0, anti-aliased by coverage.

    Streaks may be centred outside, by up to half the longest length, so the statistics of a crop do
    not depend on its size. Covered area: coverage = 1 - exp(-density * mean streak area).
    """
    # No streak reaches farther: `_Streaks.scatter` clips lengths and widths at their caps, and
    # jitter at three standard deviations.
    reach_y = LENGTH_CAP * style.length / 2 + 1
    reach_x = reach_y * math.tan(math.radians(abs(style.tilt) + 3 * style.jitter)) + WIDTH_CAP
    area = style.length * math.exp(LENGTH_SPREAD**2 / 2) * (style.width + 0.7)
    density = -math.log1p(-style.coverage) / area
    n = int(rng.poisson(density * (h + 2 * reach_y) * (w + 2 * reach_x)))
    y = rng.uniform(-reach_y, h + reach_y, n)
    x = rng.uniform(-reach_x, w + reach_x, n)
    streaks = _Streaks.scatter(style, rng, y, x)
    return _rasterise(streaks, h, w)


@dataclass(frozen=True)
class _Streaks:
    """Arrays [n]: centre, length, width (px), tilt (radians), level and profile of each streak."""

    y: Doubles
    x: Doubles
    tilt: Doubles
    length: Doubles
    width: Doubles
    level: Doubles
    power: Doubles
    wave: Doubles
    turns: Doubles
    phase: Doubles

    @classmethod
    def scatter(
        cls, style: StreakStyle, rng: np.random.Generator, y: Doubles, x: Doubles
    ) -> _Streaks:
        """Sample the values of each streak; near ones are longer, wider and brighter together."""
        n = y.size
        near = rng.normal(0.0, 1.0, n)
        own = rng.normal(0.0, 1.0, (3, n))
        # The squares of each pair of weights sum to 1, so the standard deviations are those of the
        # constants, and `near` is the part that length, width and level share.
        spread = np.clip(np.exp(LENGTH_SPREAD * (0.6 * near + 0.8 * own[0])), 0.2, LENGTH_CAP)
        width = style.width * np.exp(WIDTH_SPREAD * (0.8 * near + 0.6 * own[1]))
        level_spread = LEVEL_SPREAD * (1.0 - 0.5 * style.flat)
        # Minus s^2 / 2, so that the mean is 1, not the median.
        level = np.exp(level_spread * (0.5 * near + 0.87 * own[2]) - level_spread**2 / 2)
        jitter = np.clip(rng.normal(0.0, 1.0, n), -3, 3) * style.jitter
        return cls(
            y=y,
            x=x,
            tilt=np.radians(style.tilt + jitter),
            length=style.length * spread,
            width=np.clip(width, 0.6, WIDTH_CAP),
            level=style.level * level,
            power=rng.uniform(0.3, 1.2, n) * (1.0 - style.flat),
            wave=rng.uniform(0.0, 0.6, n) * (1.0 - style.flat),
            turns=rng.uniform(1.0, 4.0, n) * 2 * math.pi,
            phase=rng.uniform(0.0, 2 * math.pi, n),
        )

    def take(self, index: NDArray[np.intp]) -> _Streaks:
        """Select or repeat streaks."""
        return _Streaks(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def _rasterise(streaks: _Streaks, h: int, w: int) -> Doubles:
    """Sum level * profile(along) * coverage(across) over the rows that each streak crosses."""
    half = streaks.length / 2 * np.cos(streaks.tilt)
    first = np.clip(np.ceil(streaks.y - half), 0, h).astype(np.intp)
    last = np.clip(np.floor(streaks.y + half), -1, h - 1).astype(np.intp)
    rows_each = np.maximum(last - first + 1, 0)
    index = np.repeat(np.arange(rows_each.size), rows_each)
    starts = np.cumsum(rows_each) - rows_each
    row = np.arange(index.size) - np.repeat(starts - first, rows_each)
    s = streaks.take(index)
    off = row - s.y
    centre = s.x + off * -np.tan(s.tilt)
    value = s.level * _profile(s, off / (np.cos(s.tilt) * s.length) + 0.5)
    taps = math.ceil((WIDTH_CAP + 1) / math.cos(float(np.abs(streaks.tilt).max(initial=0.0)))) + 1
    column = np.floor(centre)[:, None].astype(np.intp) + np.arange(taps) - (taps - 1) // 2
    across = np.abs(column - centre[:, None]) * np.cos(s.tilt)[:, None]
    covered = np.clip(s.width[:, None] / 2 + 0.5 - across, 0.0, np.minimum(s.width, 1.0)[:, None])
    inside = (column >= 0) & (column < w) & (covered > 0)
    flat = (row[:, None] * w + column)[inside]
    weights = (value[:, None] * covered)[inside]
    # `bincount`, because streaks cross: `layer[flat] += weights` would add one streak per pixel.
    layer: Doubles = np.bincount(flat, weights=weights, minlength=h * w).astype(np.float64)
    return layer.reshape(h, w)


def _profile(s: _Streaks, along: Doubles) -> Doubles:
    """(4 t (1 - t))^p * (1 + a cos(2 pi f t + phase)): a drop's oscillation while it falls."""
    hump = np.maximum(4.0 * along * (1.0 - along), 0.0) ** s.power
    return hump * (1.0 + s.wave * np.cos(s.turns * along + s.phase))
