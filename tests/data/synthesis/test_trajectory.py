"""Random trajectories of a hand-held camera."""

from __future__ import annotations

import numpy as np
import pytest

from c2fdft_cli.data.synthesis.trajectory import POINTS, random_path


@pytest.mark.parametrize("axes", [1, 2, 4])
def test_paths_are_finite_and_move_on_every_axis(axes):
    path = random_path(axes, 0.3, np.random.default_rng(0))
    assert path.shape == (axes, POINTS)
    assert np.isfinite(path).all()
    assert (np.ptp(path, axis=1) > 0).all()


def test_inertia_straightens_the_path():
    """The distance between both ends relative to the length of the path."""

    def straightness(inertia: float) -> float:
        shares = []
        for seed in range(40):
            path = random_path(2, inertia, np.random.default_rng(seed))
            length = np.hypot(*np.diff(path, axis=1)).sum()
            shares.append(np.hypot(*(path[:, -1] - path[:, 0])) / length)
        return float(np.mean(shares))

    assert straightness(0.05) < straightness(0.3) < straightness(3.0)


def test_an_exposure_starts_within_a_motion():
    """The first velocity varies as later ones do; starting at rest it would be far smaller."""
    paths = np.stack([random_path(1, 0.05, np.random.default_rng(seed))[0] for seed in range(1500)])
    speeds = np.diff(paths, axis=1).std(axis=0)
    assert speeds[0] == pytest.approx(speeds[-1], rel=0.15)
