"""Noise: white Gaussian noise on 8-bit values, or a camera's, in linear light or raw values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator

from c2fdft_cli.data.pixels import Floats, Pixels
from c2fdft_cli.data.synthesis.camera import Camera, jpeg, photograph
from c2fdft_cli.data.synthesis.linear_light import to_linear, to_srgb
from c2fdft_cli.data.synthesis.model import Model, Unclipped
from c2fdft_cli.data.synthesis.options import IntegerRange, Number, Range, within
from c2fdft_cli.data.synthesis.streaks import StreakBank
from c2fdft_cli.vocabulary import Task

# Around the values that recipes/scripts/fit_noise.py found for PolyU: 2.2, 2.3 and 0.02.
RED, BLUE, READ = (1.6, 2.6), (1.4, 2.6), (0.003, 0.05)
"""Raw: ranges of the white balance gains, and of read noise as a share of shot noise."""

# Brooks et al., "Unprocessing images for learned raw denoising", CVPR 2019, section 3.1:
# log(read variance) = 2.18 log(shot) + 1.2, +- 0.26, fitted to a real camera's noise.
READ_SLOPE, READ_OFFSET, READ_SPREAD = 2.18, 1.2, 0.26

_OPTIONS_OF = {
    "gaussian": {"sigma", "unclipped_share"},
    "camera": {"shot", "correlated"},
    "raw": {"shot", "luma", "chroma", "sharpen", "tone", "jpeg"},
}


def _refuse_shares(sigma: tuple[float, float]) -> tuple[float, float]:
    """Raise ValueError for values on the scale 0 to 1: rounding would leave hardly any noise."""
    if 0 < sigma[1] < 1:
        raise ValueError("must be in levels of 8 bits (0 to 255), not a share of white")
    return sigma


@dataclass(frozen=True)
class NoiseModel(Model):
    """Gaussian or camera noise; the values are sampled for each image from the ranges.

    Attributes:
        kind: "gaussian" (white, on sRGB values), "camera" (shot and read noise in linear light),
            "either" (one of these two, sampled for each image), or "raw": noise of a Bayer sensor
            after all steps from its values to a stored picture.
        sigma: gaussian: standard deviation in 8-bit levels.
        unclipped_share: gaussian: share of training patches whose values are not clipped to 0..255,
            as those of benchmarks with added noise are not.
        shot: camera, raw: variance per unit of linear light, sampled uniformly in its logarithm.
        correlated: camera: neighbouring pixels are correlated as after demosaicing.
        camera_share: either: share of images with camera noise.
        raw_share: either: share of these whose noise is made in raw.
        luma: raw: range of the standard deviation in px of the camera's smoothing of brightness.
        chroma: raw: the same for colour.
        sharpen: raw: range of the share of fine detail that the camera adds to brightness.
        tone: raw: range of the tone curve, from that of sRGB (0) to an S-curve (1).
        jpeg: raw: range of the JPEG quality.
    """

    task: ClassVar[Task] = "denoise"

    kind: Literal["gaussian", "camera", "either", "raw"] = "gaussian"
    sigma: Annotated[Range, within(0, 255), AfterValidator(_refuse_shares)] = (5.0, 50.0)
    unclipped_share: Annotated[Number, within(0, 1)] = 0.0
    # The range from which Brooks et al. sample it too.
    shot: Annotated[Range, within(1e-6, 1)] = (1e-4, 1.2e-2)
    correlated: bool = True
    camera_share: Annotated[Number, within(0, 1)] = 0.5
    raw_share: Annotated[Number, within(0, 1)] = 0.0
    luma: Annotated[Range, within(0, 4)] = (0.0, 0.8)
    chroma: Annotated[Range, within(0, 8)] = (1.0, 3.0)
    sharpen: Annotated[Range, within(0, 3)] = (0.0, 1.0)
    tone: Annotated[Range, within(0, 1)] = (0.3, 1.0)
    jpeg: Annotated[IntegerRange, within(10, 100)] = (85, 98)

    @property
    def may_be_unclipped(self) -> bool:
        """Whether a share of the white noise stays unclipped."""
        return self.kind in ("gaussian", "either") and self.unclipped_share > 0

    def options_in_use(self, *, bank: bool) -> frozenset[str]:
        """Return the options of those kinds of noise that can occur, and those that choose one."""
        deciding, shares = {"kind"}, {self.kind: 1.0}
        if self.kind == "either":
            made_in_raw = self.camera_share * self.raw_share
            deciding |= {"camera_share", "raw_share"} if self.camera_share else {"camera_share"}
            shares = {
                "gaussian": 1 - self.camera_share,
                "camera": self.camera_share - made_in_raw,
                "raw": made_in_raw,
            }
        return frozenset(deciding.union(*(_OPTIONS_OF[kind] for kind in shares if shares[kind])))

    def degrade(
        self, gt: Pixels, rng: np.random.Generator, streaks: StreakBank | None = None
    ) -> Pixels:
        """Return the noisy image, rounded and clipped."""
        return _clipped(self.degrade_patch(gt, rng, streaks))

    def degrade_patch(
        self, gt: Pixels, rng: np.random.Generator, streaks: StreakBank | None = None
    ) -> Pixels | Unclipped:
        """Do the same, but not clipped and int16 where `unclipped_share` applies."""
        kind = _random_kind(self, rng)
        if kind == "raw":
            noisy = photograph(gt, random_camera(self, rng), rng)
            return jpeg(noisy, int(rng.integers(*self.jpeg, endpoint=True)))
        if kind == "camera":
            log_shot = rng.uniform(*np.log(self.shot))
            log_read = READ_SLOPE * log_shot + READ_OFFSET + rng.normal(0.0, READ_SPREAD)
            shot, read = math.exp(log_shot), math.exp(log_read)
            linear = to_linear(gt)
            return to_srgb(camera_noise(linear, shot, read, rng, correlated=self.correlated))
        white = _with_white_noise(gt, rng.uniform(*self.sigma), rng)
        # A share of 0 consumes no random number, so runs that are older than this option resume
        # unchanged.
        beyond = self.unclipped_share > 0 and rng.random() < self.unclipped_share
        return white.astype(np.int16) if beyond else _clipped(white)

    def stored_options(self) -> dict[str, Any]:
        """Return the options without those of training patches alone."""
        options = super().stored_options()
        del options["unclipped_share"]
        return options


def _random_kind(model: NoiseModel, rng: np.random.Generator) -> str:
    """Return the kind of one image's noise: "gaussian", "camera" or "raw"."""
    if model.kind != "either":
        return model.kind
    if rng.random() >= model.camera_share:
        return "gaussian"
    # A share of 0 consumes no random number, so runs that are older than this option resume
    # unchanged.
    made_in_raw = model.raw_share > 0 and rng.random() < model.raw_share
    return "raw" if made_in_raw else "camera"


def random_camera(model: NoiseModel, rng: np.random.Generator) -> Camera:
    """Sample a camera and its exposure."""
    shot = math.exp(rng.uniform(*np.log(model.shot)))
    return Camera(
        shot=shot,
        read=shot * math.exp(rng.uniform(*np.log(READ))),
        red=rng.uniform(*RED),
        blue=rng.uniform(*BLUE),
        luma=rng.uniform(*model.luma),
        chroma=rng.uniform(*model.chroma),
        sharpen=rng.uniform(*model.sharpen),
        tone=rng.uniform(*model.tone),
    )


def gaussian_noise(gt: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Return clip(round(gt + sigma * n)), n ~ N(0, I); sigma in 8-bit levels."""
    return _clipped(_with_white_noise(gt, sigma, rng))


def _with_white_noise(gt: Pixels, sigma: float, rng: np.random.Generator) -> Floats:
    """Return round(gt + sigma * n)."""
    noisy = rng.standard_normal(gt.shape, dtype=np.float32)
    noisy *= np.float32(sigma)
    noisy += gt
    return np.rint(noisy, out=noisy)


def _clipped(noisy: Floats | Unclipped | Pixels) -> Pixels:
    return np.clip(noisy, 0, 255, out=noisy).astype(np.uint8, copy=False)


def camera_noise(
    linear: Floats, shot: float, read: float, rng: np.random.Generator, *, correlated: bool
) -> Floats:
    """Return x + sqrt(shot * x + read) * n for linear light x, float32 [h, w, 3], not clipped.

    Args:
        linear: x in [0, 1].
        shot: variance per unit of light.
        read: variance without light.
        rng: the only source of randomness.
        correlated: filter n as bilinear demosaicing would, at the same variance.
    """
    h, w = linear.shape[:2]
    n = _demosaiced(rng, h, w) if correlated else rng.standard_normal((h, w, 3), dtype=np.float32)
    deviation = np.sqrt(np.float32(shot) * linear + np.float32(read))
    noisy: Floats = linear + deviation * n
    return noisy


def _demosaiced(rng: np.random.Generator, h: int, w: int) -> Floats:
    """Return unit-variance noise that is correlated as by bilinear Bayer interpolation.

    The kernels: [1 2 1] x [1 2 1] for red and blue (a quarter of the sites each), and a cross of
    four ones around a 4 for green (half of the sites).
    """
    n = rng.standard_normal((h + 2, w + 2, 3), dtype=np.float32)
    rows = n[:-2] + 2 * n[1:-1] + n[2:]
    square = rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]
    cross = rows[:, 1:-1, 1] + 2 * n[1:-1, 1:-1, 1] + n[1:-1, :-2, 1] + n[1:-1, 2:, 1]
    # 6 and the root of 20 are the Euclidean norms of the two kernels, so the variance stays 1.
    mixed: Floats = square / np.float32(6.0)
    mixed[:, :, 1] = cross / np.float32(math.sqrt(20.0))
    return mixed
