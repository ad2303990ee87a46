"""Motion blur: one shake kernel for the whole image, or a simulated exposure of a camera."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from c2fdft_cli.data.pixels import Doubles, Pixels
from c2fdft_cli.data.synthesis.camera import jpeg
from c2fdft_cli.data.synthesis.exposure import (
    Motion,
    defocus,
    integrate,
    integrate_object,
    object_mask,
    random_path,
    shake,
)
from c2fdft_cli.data.synthesis.linear_light import to_linear, to_srgb
from c2fdft_cli.data.synthesis.model import Model
from c2fdft_cli.data.synthesis.noise import camera_noise, gaussian_noise
from c2fdft_cli.data.synthesis.options import IntegerRange, Number, Range, within
from c2fdft_cli.data.synthesis.streaks import StreakBank
from c2fdft_cli.vocabulary import Task

MOST_OBJECTS = 2
# As many as the GoPro pairs average (Nah et al., CVPR 2017); odd, so that one frame is the middle.
BURST_FRAMES = (7, 9, 11, 13)
SHOT_SHARE = 0.8


@dataclass(frozen=True)
class BlurModel(Model):
    """Blur from motion; the values are sampled for each image.

    Attributes:
        kind: "kernel" (one shake kernel for the whole image, in linear light, then white noise) or
            "exposure" (a camera that turns, objects that move on their own, defocus; then the
            sensor's noise, the tone curve and JPEG).
        size: range of the trajectory's larger extent in px; 0 means no shake.
        inertia: range of how long the camera keeps its velocity, as a share of the exposure: 0.05
            is a tremble, 0.3 a bend, 2 nearly a straight line. Sampled uniformly in its logarithm.
        noise: range of the standard deviation of the noise that is added after the blur, in 8-bit
            levels; with kind "exposure" that at mid-grey, growing with the light.
        objects: exposure: share of images with one or two objects that move on their own.
        defocus: exposure: range of the radius in px of the disc that a point becomes.
        defocus_share: exposure: share of images out of focus.
        gamma: exposure: range of the exponent from stored values to light, the tone curve.
        burst: exposure: share of images that are the mean of 7 to 13 stored frames, as the GoPro
            pairs are; the others integrate all the light of one exposure.
        jpeg: exposure: range of the JPEG quality.
        jpeg_share: exposure: share of images that are stored as JPEG.
    """

    task: ClassVar[Task] = "deblur"

    size: Annotated[Range, within(0, 101)] = (5.0, 25.0)
    inertia: Annotated[Range, within(0.01, 10)] = (0.3, 0.3)
    noise: Annotated[Range, within(0, 50)] = (0.0, 2.0)
    kind: Literal["kernel", "exposure"] = "kernel"
    objects: Annotated[Number, within(0, 1)] = 0.4
    defocus: Annotated[Range, within(0.5, 20)] = (0.7, 2.5)
    defocus_share: Annotated[Number, within(0, 1)] = 0.15
    gamma: Annotated[Range, within(1, 3)] = (1.8, 2.6)
    burst: Annotated[Number, within(0, 1)] = 0.0
    jpeg: Annotated[IntegerRange, within(10, 100)] = (70, 98)
    jpeg_share: Annotated[Number, within(0, 1)] = 0.4

    @property
    def margin(self) -> int:
        """The reach of the longest motion, and of the defocus if there is any."""
        reach = self.size[1]
        if self.kind == "exposure" and self.defocus_share > 0:
            reach += self.defocus[1]
        return math.ceil(reach) + 1 if reach > 0 else 0

    def options_in_use(self, *, bank: bool) -> frozenset[str]:
        """Return all options, or those of kind "kernel"."""
        if self.kind == "kernel":
            return frozenset({"kind", "size", "inertia", "noise"})
        needed = {"defocus": self.defocus_share, "jpeg": self.jpeg_share}
        unused = {option for option, share in needed.items() if not share}
        return super().options_in_use(bank=bank) - unused

    def degrade(
        self, gt: Pixels, rng: np.random.Generator, streaks: StreakBank | None = None
    ) -> Pixels:
        """Return the blurred image; its borders are mirrored (see `margin`)."""
        if self.kind == "exposure":
            return _exposed(gt, self, rng)
        kernel = shake_kernel(rng.uniform(*self.size), _inertia(self, rng), rng)
        shaken = apply_kernel(gt, kernel)
        sigma = rng.uniform(*self.noise)
        return gaussian_noise(shaken, sigma, rng) if sigma > 0 else shaken


def _inertia(model: BlurModel, rng: np.random.Generator) -> float:
    """Sample the inertia within its range, uniformly in the logarithm."""
    low, high = model.inertia
    # A single value consumes no random number: inertia was once not a range, and the same seeds
    # still give the same pixels.
    return low if low == high else float(np.exp(rng.uniform(*np.log(model.inertia))))


def _exposed(gt: Pixels, model: BlurModel, rng: np.random.Generator) -> Pixels:
    """Simulate the camera of kind "exposure": expose, develop and store a picture."""
    h, w = gt.shape[:2]
    burst = rng.random() < model.burst
    frames = int(rng.choice(BURST_FRAMES)) if burst else 0
    # GoPro's frames were averaged as stored, that is after the tone curve: blurred and sharp
    # pictures have the same mean in stored values (docs/synthesis.md).
    gamma = 1.0 if burst else rng.uniform(*model.gamma)

    def motion() -> Motion:
        return shake(h, w, rng.uniform(*model.size), _inertia(model, rng), rng, frames)

    still = ((np.arange(256) / 255) ** gamma).astype(np.float32)[gt]
    light = integrate(still, motion())
    if rng.random() < model.objects:
        for _ in range(rng.integers(1, MOST_OBJECTS, endpoint=True)):
            light = integrate_object(light, still, object_mask(h, w, rng), motion())
    if rng.random() < model.defocus_share:
        light = defocus(light, rng.uniform(*model.defocus))
    sigma = rng.uniform(*model.noise)
    if sigma > 0:
        shot, read = _sensor(sigma, gamma)
        light = camera_noise(light, shot, read, rng, correlated=True)
    stored = np.clip(light, 0, 1) ** np.float32(1 / gamma)
    pixels: Pixels = np.rint(stored * np.float32(255)).astype(np.uint8)
    if rng.random() < model.jpeg_share:
        pixels = jpeg(pixels, int(rng.integers(*model.jpeg, endpoint=True)))
    return pixels


def _sensor(sigma: float, gamma: float) -> tuple[float, float]:
    """Return (shot, read) of noise with a standard deviation of sigma levels at mid-grey, 1/2."""
    light = 0.5**gamma
    # The slope of v^gamma at v = 1/2 converts levels to light.
    variance = (sigma / 255 * gamma * 0.5 ** (gamma - 1)) ** 2
    return SHOT_SHARE * variance / light, (1 - SHOT_SHARE) * variance


def shake_kernel(size: float, inertia: float, rng: np.random.Generator) -> Doubles:
    """Sample a point-spread function [k, k], k odd, >= 0, sum 1, centroid on the middle pixel.

    A random path is scaled to `size` px and drawn with bilinear weights, so that its centroid and
    length are exact to a fraction of a pixel.
    """
    path = random_path(2, inertia, rng)
    path *= size / float(np.ptp(path, axis=1).max())
    return _rasterise(path - path.mean(axis=1, keepdims=True))


def _rasterise(path: Doubles) -> Doubles:
    """Splat points [2, n] (px from the middle) with bilinear weights into an odd square."""
    radius = math.ceil(float(np.abs(path).max()))
    if not radius:
        return np.ones((1, 1))
    side = 2 * radius + 1
    # The second neighbour of a point at exactly `radius` would be outside the square. With the
    # pixel before as its corner, such a point gives all its weight to its own pixel.
    corner = np.minimum(np.floor(path), radius - 1)
    part = path - corner
    y, x = corner.astype(np.intp) + radius
    kernel = np.zeros(side * side)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = np.abs(1 - dy - part[0]) * np.abs(1 - dx - part[1])
        # `bincount`, because points share pixels: `kernel[index] += weight` would add only one.
        kernel += np.bincount((y + dy) * side + x + dx, weights=weight, minlength=side * side)
    kernel /= path.shape[1]
    return kernel.reshape(side, side)


def apply_kernel(gt: Pixels, kernel: Doubles) -> Pixels:
    """Convolve each channel with the kernel in linear light, borders mirrored."""
    import cv2

    if kernel.size == 1:
        return gt.copy()
    # OpenCV's filter computes a correlation, so the kernel is flipped.
    flipped = kernel[::-1, ::-1].astype(np.float32)
    linear = to_linear(gt)
    shaken = cv2.filter2D(linear, -1, flipped, borderType=cv2.BORDER_REFLECT)
    return to_srgb(shaken)
