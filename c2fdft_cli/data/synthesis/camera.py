"""A sensor's noise after a camera has processed its raw values to a picture.

The camera is modelled as a linear map of raw light (demosaicing, white balance, colour matrix,
noise reduction, sharpening), followed by a tone curve. The map of signal plus noise is then the
clean picture plus the map of the noise, so only the noise is passed through the map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from c2fdft_cli.data.pixels import Floats, Pixels
from c2fdft_cli.data.synthesis.linear_light import SRGB_CURVE, STEPS, to_srgb

# A typical matrix from camera to sRGB colours; its rows sum to 1, so that grey stays grey.
COLOUR_MATRIX = np.array(
    [[1.6, -0.45, -0.15], [-0.25, 1.55, -0.30], [0.0, -0.5, 1.5]], dtype=np.float32
)
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
WIDE, WIDE_SHARE = 2.5, 0.4
"""Noise reduction is a mean of two Gaussians: width of the second to the first, and its share."""


@dataclass(frozen=True)
class Camera:
    """One camera at one exposure.

    Attributes:
        shot: variance of a raw value per unit of light.
        read: variance of a raw value without light.
        red: gain of the white balance for red; that of green is 1.
        blue: the same for blue.
        luma: standard deviation in px of the noise reduction of brightness; 0 means none.
        chroma: the same for colour.
        sharpen: share of the detail finer than 1 px that is added to brightness.
        tone: 0 for the curve of sRGB, 1 for a full S-curve v -> 3 v^2 - 2 v^3 after it.
    """

    shot: float
    read: float
    red: float
    blue: float
    luma: float
    chroma: float
    sharpen: float
    tone: float


def photograph(gt: Pixels, camera: Camera, rng: np.random.Generator) -> Pixels:
    """Return the noisy picture of a clean one, uint8 [h, w, 3] in and out."""
    decode, encode = tone_curve(camera.tone)
    light = decode[gt]
    return to_srgb(light + reduce_noise(raw_noise(light, camera, rng), camera), encode)


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    """Encode a picture as JPEG of this quality (1..100) and decode it again."""
    import cv2

    bgr = np.ascontiguousarray(pixels[:, :, ::-1])
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    stored: Pixels = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return stored


def raw_noise(light: Floats, camera: Camera, rng: np.random.Generator) -> Floats:
    """Noise of a Bayer sensor after bilinear demosaicing, white balance and colour matrix.

    Each site of the mosaic has noise of variance shot * x + read, x being its raw value.

    Args:
        light: linear sRGB in [0, 1], float32 [h, w, 3].
        camera: only shot, read, red and blue are used.
        rng: the only source of randomness.

    Returns:
        float32 [h, w, 3], in units of `light`.
    """
    import cv2

    h, w = light.shape[:2]
    gains = np.array([camera.red, 1.0, camera.blue], dtype=np.float32)
    to_raw = np.linalg.inv(COLOUR_MATRIX) / gains[:, None]
    raw = light @ to_raw.T  # not negative: no element of the inverse matrix is
    first_y, first_x = rng.integers(0, 2, 2)
    noise = rng.standard_normal((h, w), dtype=np.float32)
    # The mosaic is zero at the sites of other colours. So one kernel does both: it keeps the value
    # at a site of its own colour, and averages the neighbours in between.
    filters = (np.outer([1, 2, 1], [1, 2, 1]) / 4, np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4)
    y, x = (np.arange(h) + first_y)[:, None] % 2, (np.arange(w) + first_x)[None] % 2
    planes = []
    for channel, sites in enumerate((y + x == 0, (y + x) == 1, y + x == 2)):
        deviation = np.sqrt(np.float32(camera.shot) * raw[:, :, channel] + np.float32(camera.read))
        mosaic = np.where(sites, noise * deviation * gains[channel], np.float32(0))
        kernel = filters[channel == 1].astype(np.float32)
        # 101, because BORDER_REFLECT repeats the outermost row, which breaks the alternation of
        # the sites.
        planes.append(cv2.filter2D(mosaic, -1, kernel, borderType=cv2.BORDER_REFLECT_101))
    mixed: Floats = np.dstack(planes) @ COLOUR_MATRIX.T
    return mixed


def reduce_noise(noise: Floats, camera: Camera) -> Floats:
    """Smooth brightness and colour, each with its own width, then sharpen brightness."""
    import cv2

    brightness = noise @ LUMA
    colour = _smooth(noise - brightness[:, :, None], camera.chroma)
    brightness = _smooth(brightness, camera.luma)
    if camera.sharpen:
        brightness = brightness + np.float32(camera.sharpen) * (
            brightness - cv2.GaussianBlur(brightness, (0, 0), 1.0)
        )
    left: Floats = colour + brightness[:, :, None]
    return left


def _smooth(noise: Floats, sigma: float) -> Floats:
    """Filter with two Gaussians, or not at all if sigma is so small that one is a single pixel."""
    import cv2

    if sigma < 0.2:
        return noise
    narrow, wide = (cv2.GaussianBlur(noise, (0, 0), s) for s in (sigma, WIDE * sigma))
    both: Floats = narrow * np.float32(1 - WIDE_SHARE) + wide * np.float32(WIDE_SHARE)
    return both


def tone_curve(tone: float) -> tuple[Floats, Pixels]:
    """Return tables from stored values [256] to light, and from light [STEPS] to stored values."""
    v = SRGB_CURVE
    curve = v + tone * (3 * v**2 - 2 * v**3 - v)
    decode = np.interp(np.arange(256) / 255, curve, np.arange(STEPS) / (STEPS - 1))
    return decode.astype(np.float32), np.rint(curve * 255).astype(np.uint8)
