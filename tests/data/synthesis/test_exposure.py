"""Motion of cameras and objects, and the integration over an exposure."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data as photos

from c2fdft_cli.data.synthesis.exposure import (
    MOST_FRAMES,
    POINTS,
    Motion,
    _displacement,
    _homography,
    defocus,
    integrate,
    integrate_object,
    object_mask,
    random_path,
    shake,
)


def light(h: int = 96, w: int = 112) -> np.ndarray:
    return (photos.coffee()[:h, :w] / 255).astype(np.float32)


def shift(*offsets: tuple[float, float]) -> Motion:
    matrices = np.stack([np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1.0]]) for dx, dy in offsets])
    return Motion(matrices, np.full(len(offsets), 1 / len(offsets)))


def moved(motion: Motion, x: float, y: float) -> np.ndarray:
    points = motion.homographies @ np.array([x, y, 1.0])
    return points[:, :2] / points[:, 2:]


@pytest.mark.parametrize("size", [0.0, 3.0, 12.0, 30.0])
@pytest.mark.parametrize("frames", [0, 13])
def test_the_largest_motion_of_a_corner_is_the_requested_one(size, frames):
    h, w = 192, 256
    for seed in range(10):
        motion = shake(h, w, size, 1.0, np.random.default_rng(seed), frames)
        extents = [
            np.ptp(moved(motion, x, y), axis=0).max() for x in (0, w - 1) for y in (0, h - 1)
        ]
        assert motion.weights.sum() == pytest.approx(1.0)
        # The first and last positions are half a step inside the path.
        assert 0.75 * size <= max(extents) <= 1.05 * size


def test_a_burst_is_at_rest_in_its_middle_frame():
    motion = shake(200, 300, 20.0, 1.0, np.random.default_rng(5), 9)
    assert motion.weights.tolist() == pytest.approx([1 / 9] * 9)
    np.testing.assert_allclose(motion.homographies[4], np.eye(3), atol=1e-9)


def test_positions_are_near_each_other():
    for seed in range(10):
        motion = shake(192, 192, 20.0, 1.0, np.random.default_rng(seed))
        steps = np.hypot(*np.diff(moved(motion, 96, 96), axis=0).T)
        assert len(motion.weights) == MOST_FRAMES or steps.max() < 2


def test_corners_move_as_a_rotating_camera_moves_them():
    motion = shake(400, 600, 20.0, 1.0, np.random.default_rng(2))
    one, other = moved(motion, 0, 0), moved(motion, 599, 399)
    assert np.abs((one - one[0]) - (other - other[0])).max() > 0.5


def test_integrating_whole_shifts_is_the_mean_of_shifted_images():
    image = light()
    got = integrate(image, shift((0, 0), (3, 0), (0, -2)))
    want = (image[10:-10, 10:-10] + image[10:-10, 7:-13] + image[12:-8, 10:-10]) / 3
    np.testing.assert_allclose(got[10:-10, 10:-10], want, atol=1e-5)


def test_an_object_at_rest_covers_what_is_behind_it():
    image, behind = light(), np.zeros((96, 112, 3), np.float32)
    mask = np.zeros((96, 112), np.float32)
    mask[20:60, 30:70] = 1
    laid = integrate_object(behind, image, mask, shift((0, 0)))
    np.testing.assert_allclose(laid[20:60, 30:70], image[20:60, 30:70], atol=1e-6)
    assert laid[:20].max() == 0


def test_the_edge_of_an_object_moves_with_it():
    white, black = np.ones((60, 60, 3), np.float32), np.zeros((60, 60, 3), np.float32)
    mask = np.zeros((60, 60), np.float32)
    mask[20:40, 20:40] = 1
    laid = integrate_object(black, white, mask, shift((0, 0), (4, 0)))
    np.testing.assert_allclose(laid[30, 18:46:4, 0], [0, 0.5, 1, 1, 1, 1, 0.5], atol=1e-5)
    dark = integrate_object(white, black, mask, shift((0, 0), (4, 0)))  # in front of a light scene
    np.testing.assert_allclose(dark, 1 - laid, atol=1e-5)


def test_masks_are_opacities_with_soft_edges():
    covered = []
    for seed in range(60):
        mask = object_mask(120, 150, np.random.default_rng(seed))
        assert mask.shape == (120, 150)
        assert mask.dtype == np.float32
        assert mask.min() >= 0
        assert mask.max() <= 1
        covered.append(mask.mean())
    assert 0.05 < np.mean(covered) < 0.5


def test_a_point_out_of_focus_becomes_a_disc_of_equal_light():
    image = np.zeros((41, 41, 3), np.float32)
    image[20, 20] = 1
    disc = defocus(image, 5.0)[:, :, 0]
    assert disc.sum() == pytest.approx(1.0, rel=1e-5)
    assert disc[20, 16] == pytest.approx(disc[20, 20], rel=1e-4)
    assert disc[20, 26] < 1e-6
    assert disc[20, 20] == pytest.approx(1 / (np.pi * 25), rel=0.05)


@pytest.mark.parametrize("axis", range(4))
def test_displacements_equal_those_of_a_rotating_camera(axis):
    """To first order in small angles, at a point far from the centre."""
    size, x, y, focal = 1e-5, 150.0, -90.0, 400.0
    pose = np.zeros(4)
    pose[axis] = size
    there = _homography(pose, np.zeros(2), focal) @ np.array([x, y, 1.0])
    want = there[:2] / there[2] - (x, y)
    found = _displacement(pose[:, None], x, y, focal)[:, 0]
    assert found == pytest.approx(want, rel=1e-3, abs=1e-6)


# -- the path of a hand-held camera ---------------------------------------------------


@pytest.mark.parametrize("axes", [1, 2, 4])
def test_paths_are_finite_and_move_on_every_axis(axes):
    path = random_path(axes, 0.3, np.random.default_rng(0))
    assert path.shape == (axes, POINTS)
    assert np.isfinite(path).all()
    assert (np.ptp(path, axis=1) > 0).all()


def test_inertia_straightens():
    """The way between both ends as a share of the length of the path."""

    def straightness(inertia: float) -> float:
        shares = []
        for seed in range(40):
            path = random_path(2, inertia, np.random.default_rng(seed))
            length = np.hypot(*np.diff(path, axis=1)).sum()
            shares.append(np.hypot(*(path[:, -1] - path[:, 0])) / length)
        return float(np.mean(shares))

    assert straightness(0.05) < straightness(0.3) < straightness(3.0)


def test_an_exposure_begins_within_a_motion():
    """The first velocity varies as later ones do: from rest it would be far smaller."""
    paths = np.stack([random_path(1, 0.05, np.random.default_rng(seed))[0] for seed in range(1500)])
    speeds = np.diff(paths, axis=1).std(axis=0)
    assert speeds[0] == pytest.approx(speeds[-1], rel=0.15)
