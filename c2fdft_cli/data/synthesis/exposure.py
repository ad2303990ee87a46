"""What a camera integrates while its shutter is open: its rotation, moving objects, defocus.

Images are float32 [h, w, c], proportional to light.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from c2fdft_cli.data.pixels import Doubles, Floats

VIEW = (720, 1280)
"""A crop is treated as part of a picture of this size; its position there sets its perspective."""

FOCAL_LENGTHS = (0.6, 1.2)
"""Range in widths of the view; 0.6 is an action camera, 0.8 a phone."""

ZOOM = 0.3
"""Standard deviation of the change of scale (walking forward) relative to that of an angle."""

LEAST_FRAMES, MOST_FRAMES = 5, 40

POINTS = 512
"""Number of points of a random path, evenly spaced in time."""
JERK_SHARE, JERK_FACTOR = 0.01, 6.0


@dataclass(frozen=True)
class Motion:
    """Homographies [n, 3, 3] of the image's pixels during the exposure, and how long each lasts.

    The image at rest is the one at the middle of the exposure; the weights [n] sum to 1.
    """

    homographies: Doubles
    weights: Doubles


def random_path(axes: int, inertia: float, rng: np.random.Generator) -> Doubles:
    """Sample the path of a hand-held camera, [axes, POINTS], of arbitrary scale.

    The velocity is a random walk with memory, v' = rho v + e, rho = exp(-1 / (inertia * POINTS)),
    with a rare jerk in e; the path is its sum.
    """
    force = rng.normal(0.0, 1.0, (axes, POINTS))
    force *= np.where(rng.random(POINTS) < JERK_SHARE, JERK_FACTOR, 1.0)
    memory = np.exp(-np.arange(POINTS) / (inertia * POINTS))
    # The standard deviation of a walk that has been running forever: the exposure starts in the
    # middle of a motion, not at rest.
    start = rng.normal(0.0, 1.0, axes) / math.sqrt(1.0 - memory[1] ** 2)
    velocity = np.stack([np.convolve(f, memory)[:POINTS] for f in force])
    path: Doubles = np.cumsum(velocity + start[:, None] * memory, axis=1)
    return path


def shake(
    h: int, w: int, size: float, inertia: float, rng: np.random.Generator, frames: int = 0
) -> Motion:
    """Turn a camera (yaw, pitch, roll) and change its scale along a random path.

    Args:
        h: height of the image or crop in px.
        w: width in px.
        size: extent in px of the path of the corner that moves farthest, the larger of its width
            and height.
        inertia: see `random_path`.
        rng: the only source of randomness.
        frames: number of positions, odd; they are evenly spaced in time, the middle one at rest.
            Or 0 for 5 to 40 positions that are evenly spaced along the path, about 1 px apart if
            its length allows this, and weighted by the time spent there.
    """
    view_h, view_w = max(h, VIEW[0]), max(w, VIEW[1])
    focal = view_w * rng.uniform(*FOCAL_LENGTHS)
    centre = np.array(
        [(side - 1) / 2 + rng.uniform(-0.5, 0.5) * (view - side)
         for side, view in ((w, view_w), (h, view_h))]
    )  # fmt: skip
    path = random_path(4, inertia, rng) * np.array([1.0, 1.0, 1.0, ZOOM])[:, None]
    path -= path[:, POINTS // 2 :][:, :1]
    corners = np.array([(0, 0), (w - 1, 0), (0, h - 1), (w - 1, h - 1)]) - centre
    moved = np.stack([_displacement(path, x, y, focal) for x, y in corners])
    # For small angles displacements are linear in the path, so one factor scales them to `size`.
    # They determine only the extent: the picture is moved by the exact homographies.
    scale = size / float(np.ptp(moved, axis=2).max())
    at, weights = _evenly_in_time(frames) if frames else _evenly_along(scale * moved)
    poses = scale * np.stack([np.interp(at, np.arange(POINTS), axis) for axis in path], axis=1)
    matrices = np.stack([_homography(pose, centre, focal) for pose in poses])
    return Motion(matrices, weights)


def _evenly_in_time(frames: int) -> tuple[Doubles, Doubles]:
    """Return times, the middle one in the middle of the path, and equal weights."""
    at = POINTS // 2 + (np.arange(frames, dtype=np.float64) - frames // 2) * (POINTS / frames)
    weights: Doubles = np.full(frames, 1 / frames)
    return at, weights


def _evenly_along(moved: Doubles) -> tuple[Doubles, Doubles]:
    """Return 5 to 40 times, evenly spaced along paths [k, 2, POINTS], and their share of time."""
    steps = np.hypot(*np.diff(moved, axis=2).transpose(1, 0, 2)).mean(axis=0)
    along: Doubles = np.concatenate([[0.0], np.cumsum(steps)])
    n = min(max(math.ceil(along[-1]), LEAST_FRAMES), MOST_FRAMES)
    at = np.interp((np.arange(n) + 0.5) / n * along[-1], along, np.arange(POINTS))
    near, _ = np.histogram(along, bins=n, range=(0.0, float(along[-1]) or 1.0))
    weights: Doubles = near / POINTS
    return at.astype(np.float64), weights


def _displacement(path: Doubles, x: float, y: float, focal: float) -> Doubles:
    """Return the px [2, n] by which small angles and a change of scale move the point (x, y)."""
    yaw, pitch, roll, zoom = path
    across = yaw * (focal + x * x / focal) + pitch * x * y / focal - roll * y + zoom * x
    down = yaw * x * y / focal + pitch * (focal + y * y / focal) + roll * x + zoom * y
    return np.stack([across, down])


def _homography(pose: Doubles, centre: Doubles, focal: float) -> Doubles:
    """Return K R K^-1 of a camera rotated by (yaw, pitch, roll), then scaled by 1 + zoom."""
    (sin_y, sin_p, sin_r, _), (cos_y, cos_p, cos_r, _) = np.sin(pose), np.cos(pose)
    yaw = np.array([[cos_y, 0, sin_y], [0, 1, 0], [-sin_y, 0, cos_y]])
    pitch = np.array([[1, 0, 0], [0, cos_p, sin_p], [0, -sin_p, cos_p]])
    roll = np.array([[cos_r, -sin_r, 0], [sin_r, cos_r, 0], [0, 0, 1]])
    camera = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
    zoom = np.diag([1 + pose[3], 1 + pose[3], 1.0])
    matrix: Doubles = camera @ zoom @ roll @ pitch @ yaw @ np.linalg.inv(camera)
    return matrix


def integrate(light: Floats, motion: Motion) -> Floats:
    """Return the mean of the image under the motion; borders are mirrored."""
    import cv2

    total = np.zeros_like(light)
    for matrix, weight in zip(motion.homographies, motion.weights, strict=True):
        frame = cv2.warpPerspective(
            light, matrix, light.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        cv2.scaleAdd(frame, float(weight), total, dst=total)
    return total


def integrate_object(behind: Floats, light: Floats, mask: Floats, motion: Motion) -> Floats:
    """Composite a moving part of an image over the background.

    The object's light and its mask are integrated separately from the background, as if what the
    object uncovers did not depend on when it does so.

    Args:
        behind: the integrated background [h, w, 3].
        light: the image at rest [h, w, 3].
        mask: the object's opacity [h, w] in [0, 1].
        motion: of the object.
    """
    moved = integrate(np.dstack([light * mask[:, :, None], mask]), motion)
    laid: Floats = behind * (1 - moved[:, :, 3:]) + moved[:, :, :3]
    return laid


def object_mask(h: int, w: int, rng: np.random.Generator) -> Floats:
    """Sample a smooth blob, float32 [h, w] in [0, 1], with an edge 1 to 4 px wide."""
    radius = rng.uniform(0.12, 0.45) * min(h, w)
    stretch = math.exp(rng.uniform(-0.5, 0.5))
    y = (np.arange(h, dtype=np.float32) - np.float32(rng.uniform(0, h)))[:, None]
    x = (np.arange(w, dtype=np.float32) - np.float32(rng.uniform(0, w)))[None, :]
    x, y = x * np.float32(stretch), y / np.float32(stretch)
    angle = np.arctan2(y, x)
    outline = np.full((h, w), radius, np.float32)
    for k in range(2, 6):
        swing = radius * rng.normal(0.0, 0.35) / k
        outline += np.float32(swing) * np.cos(k * angle + np.float32(rng.uniform(0, 2 * math.pi)))
    edge = np.float32(rng.uniform(1.0, 4.0))
    mask: Floats = np.clip((outline - np.hypot(x, y)) / edge + np.float32(0.5), 0, 1)
    return mask


def defocus(light: Floats, radius: float) -> Floats:
    """Convolve with a uniform disc of this radius in px, its edge smooth over 1 px."""
    import cv2

    reach = math.ceil(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(radius + 0.5 - np.hypot(y, x), 0, 1)
    kernel = (disc / disc.sum()).astype(np.float32)
    blurred: Floats = cv2.filter2D(light, -1, kernel, borderType=cv2.BORDER_REFLECT)
    return blurred
