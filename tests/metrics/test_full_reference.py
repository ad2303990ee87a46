"""piq's metrics: bounds, identity, direction, and two of them compared with their formulas."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from c2fdft_cli.metrics import full_reference
from c2fdft_cli.metrics.full_reference import METRICS, ImageMetric, load_piq, without_download

SIDE = 176


@pytest.fixture(scope="module")
def gt() -> torch.Tensor:
    data = pytest.importorskip("skimage.data")
    pixels = data.astronaut()[20 : 20 + SIDE, 100 : 100 + SIDE + 6]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def noisy(image: torch.Tensor, strength: float) -> torch.Tensor:
    i = torch.arange(image.numel(), dtype=torch.float64)
    noise = torch.sin(12.9898 * i + 0.3 * torch.cos(78.233 * i)).reshape(image.shape).float()
    return (image + strength * noise).clamp(0, 1)


def higher_is_better(name: str) -> bool:
    return not METRICS[name].lower_wins


@pytest.mark.parametrize("name", without_download(METRICS))
def test_equal_images_have_the_best_score(name: str, gt: torch.Tensor) -> None:
    best = 1.0 if higher_is_better(name) else 0.0
    assert METRICS[name](gt, gt) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("name", without_download(METRICS))
def test_more_noise_is_worse_and_in_range(name: str, gt: torch.Tensor) -> None:
    scores = [METRICS[name](noisy(gt, strength), gt) for strength in (0.03, 0.1, 0.3)]
    assert scores == sorted(scores, reverse=higher_is_better(name))
    assert all(0 <= value <= 1 for value in scores)


@pytest.mark.parametrize("name", without_download(METRICS))
def test_small_images_have_no_score(name: str, gt: torch.Tensor) -> None:
    side = METRICS[name].min_size
    small = gt[..., : side - 1, :]
    assert math.isnan(METRICS[name](small, small))
    least = gt[..., :side, : side + 3]
    assert not math.isnan(METRICS[name](noisy(least, 0.1), least))


@pytest.mark.parametrize("name", ["fsim", "gmsd"])
def test_red_and_blue_are_weighted_differently(name: str, gt: torch.Tensor) -> None:
    """This confirms the RGB order of the channels."""
    red, blue = gt.clone(), gt.clone()
    red[:, 0], blue[:, 2] = noisy(gt, 0.2)[:, 0], noisy(gt, 0.2)[:, 2]
    scores = [METRICS[name](image, gt) for image in (red, blue)]
    assert (scores[0] < scores[1]) == higher_is_better(name)


@pytest.mark.parametrize("name", without_download(METRICS))
def test_equal_black_images_have_the_best_score(name: str) -> None:
    """As a video has them; some formulas divide zero by zero there."""
    black = torch.zeros(1, 3, 170, 170)
    best = 1.0 if higher_is_better(name) else 0.0
    assert METRICS[name](black, black) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("name", ["fsim", "mdsi", "srsim", "vsi"])
@pytest.mark.parametrize(("side", "factor"), [(639, 2), (640, 3)])
def test_the_factor_of_shrinking_is_rounded_as_in_matlab(
    name: str, side: int, factor: int, gt: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = gt.repeat(1, 1, 4, 4)[..., :side, : side + 20]
    lq = noisy(large, 0.1)
    got = METRICS[name](lq, large)
    own = getattr(load_piq(), name)
    monkeypatch.setitem(own.__globals__, "round", lambda _: factor)
    assert got == float(own(lq, large))


def test_gmsd_equals_its_formula(gt: torch.Tensor) -> None:
    """Xue et al. 2013: Prewitt gradients of half-size luma, deviation of their similarity."""

    def gradient(image: torch.Tensor) -> np.ndarray[Any, Any]:
        r, g, b = image[0].double().numpy()
        y = 0.299 * r + 0.587 * g + 0.114 * b
        y = (y[0::2, 0::2] + y[1::2, 0::2] + y[0::2, 1::2] + y[1::2, 1::2]) / 4
        y = np.pad(y, 1)
        dx = sum(y[i : len(y) - 2 + i, 2:] - y[i : len(y) - 2 + i, :-2] for i in range(3)) / 3
        width = y.shape[1] - 2
        dy = sum(y[2:, i : width + i] - y[:-2, i : width + i] for i in range(3)) / 3
        return np.sqrt(dx**2 + dy**2)

    lq = noisy(gt, 0.1)
    a, b, c = gradient(lq), gradient(gt), 170 / 255**2
    want = ((2 * a * b + c) / (a**2 + b**2 + c)).std()
    assert METRICS["gmsd"](lq, gt) == pytest.approx(want, rel=1e-3)


def test_ms_ssim_equals_its_formula(gt: torch.Tensor) -> None:
    """Wang et al. 2003, each scale by scikit-image's formula."""
    metrics = pytest.importorskip("skimage.metrics")
    lq = noisy(gt, 0.1)
    a, b = (image[0].double().numpy() for image in (lq, gt))
    total = np.ones(3)
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        for c in range(3):
            keys = {"data_range": 1, "gaussian_weights": True, "use_sample_covariance": False}
            _, whole = metrics.structural_similarity(a[c], b[c], full=True, **keys)
            total[c] *= max(_term(a[c], b[c], whole, last=scale == 4), 0) ** weight
        a, b = (_half(x) for x in (a, b))
    assert METRICS["ms_ssim"](lq, gt) == pytest.approx(total.mean(), rel=2e-3)


def _half(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    return (x[:, 0::2, 0::2] + x[:, 1::2, 0::2] + x[:, 0::2, 1::2] + x[:, 1::2, 1::2]) / 4


def _term(
    a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], ssim: np.ndarray[Any, Any], *, last: bool
) -> float:
    """Mean SSIM at the last scale; at earlier ones its contrast term (SSIM over luminance)."""
    if last:
        return float(ssim[5:-5, 5:-5].mean())
    filters = pytest.importorskip("scipy.ndimage")
    mu_a, mu_b = (filters.gaussian_filter(x, 1.5, truncate=3.5) for x in (a, b))
    luminance = (2 * mu_a * mu_b + 1e-4) / (mu_a**2 + mu_b**2 + 1e-4)
    return float((ssim / luminance)[5:-5, 5:-5].mean())


def test_invalid_images_and_metrics_are_refused(gt: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="one shape"):
        METRICS["gmsd"](gt, gt[..., 1:])
    with pytest.raises(ValueError, match="one shape"):
        METRICS["gmsd"](gt[:, :1], gt[:, :1])
    with pytest.raises((ValueError, AssertionError)):
        METRICS["gmsd"](gt * 255, gt)
    with pytest.raises(KeyError):
        METRICS["niqe"](gt, gt)


def test_a_metric_keeps_no_graph_and_has_no_infinite_values() -> None:
    """The weights of learned metrics would need their activations for gradients."""
    image, weight = torch.ones(1, 3, 16, 16), torch.ones(1, requires_grad=True)
    graphs = []

    def compute(given: torch.Tensor) -> torch.Tensor:
        graphs.append((given * weight).requires_grad)
        return given.mean() / 0

    metric = ImageMetric("ratio", compute, "higher is better", "0 up", 16, "")
    assert math.isnan(metric(image))
    assert graphs == [False]


def test_the_set_of_metrics_needs_no_download() -> None:
    assert {*METRICS} - {*without_download(METRICS)} == {"lpips", "dists"}
    assert {name for name, one in METRICS.items() if one.downloads} == {"lpips", "dists"}
    assert all(hasattr(load_piq(), function) for function in ("LPIPS", "DISTS"))


@pytest.mark.acceptance
def test_threads_may_load_piq_at_once() -> None:
    """Runs in a new process, as piq is loaded in this one already."""
    script = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from c2fdft_cli.metrics.full_reference import load_piq
start = Barrier(4)
def load(_):
    start.wait()
    return load_piq().__name__
sys.setswitchinterval(1e-5)
with ThreadPoolExecutor(4) as pool:
    print(*pool.map(load, range(4)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["piq"] * 4, done.stderr


def test_a_lack_of_memory_is_not_remembered_as_missing_weights(
    gt: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lpips() -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(load_piq(), "LPIPS", lpips)
    full_reference._load_network.cache_clear()
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        METRICS["lpips"](gt, gt)
    assert full_reference._load_network.cache_info().currsize == 0


def test_weights_that_cannot_be_downloaded_are_requested_once(
    gt: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def lpips() -> None:
        asked.append(1)
        time.sleep(
            0.1
        )  # as slow as a failing connection, so that all threads have started meanwhile
        raise OSError("no route to host")

    monkeypatch.setattr(load_piq(), "LPIPS", lpips)
    full_reference._load_network.cache_clear()
    try:
        with ThreadPoolExecutor(3) as pool:
            tries = [pool.submit(METRICS["lpips"], gt, gt) for _ in range(6)]
        for one in tries:
            with pytest.raises(ValueError, match="weights of lpips cannot be loaded: no route"):
                one.result()
    finally:
        full_reference._load_network.cache_clear()
    assert len(asked) == 1
