"""piq's metrics equal golden values of other programs: see docs/metrics.md."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c2fdft_cli.metrics import full_reference
from c2fdft_cli.metrics.full_reference import METRICS, load_piq, without_download
from c2fdft_cli.metrics.no_reference import NO_REFERENCE

GOLDEN = json.loads((Path(__file__).parents[1] / "numbers" / "piq_golden.json").read_text())
PLACES = {"astronaut": (20, 212, 100, 292), "chelsea": (30, 286, 60, 380)}
SIZES = {"waves": (184, 200), "big": (400, 448)}

Pixels = np.ndarray[Any, Any]


def clean(name: str) -> Pixels:
    if name in PLACES:
        top, bottom, left, right = PLACES[name]
        photo = getattr(pytest.importorskip("skimage.data"), name)()
        return photo[top:bottom, left:right]
    h, w = SIZES[name]
    y, x, c = np.mgrid[0:h, 0:w, 0:3].astype(np.float64)
    soft = 60 * np.sin(0.11 * x + 0.5 * c) * np.cos(0.07 * y)
    slow = 40 * np.sin(0.013 * x * (1 + c) + 0.021 * y)
    edges = 25 * np.sign(np.sin(0.05 * x + 0.03 * y + c))
    return (128 + soft + slow + edges).clip(0, 255).round().astype(np.uint8)


def worse(image: Pixels) -> Pixels:
    """Add noise that grows over every 64 rows, and a colour cast."""
    i = np.arange(image.size, dtype=np.float64).reshape(image.shape)
    noise = 22 * np.sin(12.9898 * i + 0.3 * np.cos(78.233 * i))
    y = np.arange(image.shape[0])[:, None, None]
    cast = image * np.array([0.9, 1.0, 1.05])
    return (cast + noise * (0.3 + 0.7 * (y % 64) / 63)).clip(0, 255).round().astype(np.uint8)


def tensor(pixels: Pixels) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()


@pytest.fixture(scope="module", params=["waves", "big", "astronaut", "chelsea"])
def pair(request: pytest.FixtureRequest) -> tuple[str, torch.Tensor, torch.Tensor]:
    gt = clean(request.param)
    return request.param, tensor(worse(gt)), tensor(gt)


@pytest.mark.parametrize("metric", GOLDEN["metrics"])
def test_metrics_equal_those_of_another_program(
    metric: str, pair: tuple[str, torch.Tensor, torch.Tensor]
) -> None:
    name, lq, gt = pair
    golden = GOLDEN["metrics"][metric]
    got = METRICS[metric](lq / 255, gt / 255)
    assert got == pytest.approx(golden["values"][name], abs=golden["tolerance"])


def gmsd(lq: Pixels, gt: Pixels) -> float:
    """Xue et al. 2014: the deviation of the similarity of gradients, on Y of means of 2 x 2 px."""
    gradients = []
    for image in (lq, gt):
        y = image @ [0.299, 0.587, 0.114]
        y = y.reshape(y.shape[0] // 2, 2, y.shape[1] // 2, 2).mean((1, 3))
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(y, 1), (3, 3))
        prewitt = np.array([[1, 0, -1]] * 3) / 3
        across, along = (np.einsum("hwij,ij", windows, one) for one in (prewitt, prewitt.T))
        gradients.append(np.hypot(across, along))
    a, b = gradients
    c = 170 / 255**2
    return float(((2 * a * b + c) / (a**2 + b**2 + c)).std(ddof=1))


FORMULAS: dict[str, tuple[Callable[[Pixels, Pixels], float], float]] = {"gmsd": (gmsd, 3e-6)}
"""Metrics computed by their formula in float64, from RGB [h, w, 3] in [0, 1], with tolerances.

For a metric that no second program computes this is the second program (`gmsd` has both).
"""


@pytest.mark.parametrize("metric", FORMULAS)
def test_metrics_equal_their_formula(
    metric: str, pair: tuple[str, torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    formula, tolerance = FORMULAS[metric]
    assert 0 < tolerance < 1e-3
    got = METRICS[metric](*(one / 255 for one in pair[1:]))
    arrays = [one[0].permute(1, 2, 0).double().numpy() / 255 for one in pair[1:]]
    monkeypatch.setitem(sys.modules, "piq", None)  # a formula that calls the metric itself fails
    assert got == pytest.approx(formula(*arrays), abs=tolerance)


def test_the_blur_effect_equals_that_of_another_program(
    pair: tuple[str, torch.Tensor, torch.Tensor],
) -> None:
    name, *both = pair
    golden = GOLDEN["alone"]["blur_effect"]
    got = [NO_REFERENCE["blur_effect"](one) for one in both]
    assert got == pytest.approx(golden["values"][name], abs=golden["tolerance"])


@pytest.mark.parametrize("name", ["waves", "big", "astronaut", "chelsea"])
def test_the_noise_sigma_equals_that_of_another_program(name: str) -> None:
    """Neither rounded nor clipped: for coefficients of zero, rounding would decide the result."""
    golden = GOLDEN["alone"]["noise_sigma"]
    image = clean(name)
    i = np.arange(image.size, dtype=np.float64).reshape(image.shape)
    noisy = 60 + 0.5 * image + 9 * np.sin(12.9898 * i + 0.3 * np.cos(78.233 * i))
    got = NO_REFERENCE["noise_sigma"](torch.from_numpy(noisy).permute(2, 0, 1)[None])
    assert got == pytest.approx(golden["values"][name], abs=golden["tolerance"])


def test_every_metric_has_golden_values_of_a_program() -> None:
    missing = set(without_download(METRICS)) - set(GOLDEN["metrics"]) - set(FORMULAS)
    assert missing == set(), (
        "they need numbers of another program in tests/numbers/piq_golden.json, or their formula "
        "in FORMULAS: CONTRIBUTING.md, A new metric"
    )
    for name, one in GOLDEN["metrics"].items():
        what = f"tests/numbers/piq_golden.json: {name}"
        assert set(one["values"]) == set(GOLDEN["images"]), what
        assert one["largest_difference"] < one["tolerance"] < 1e-3, what
        assert "piq " not in one["program"], what
    assert set(GOLDEN["alone"]) < set(NO_REFERENCE)


def test_the_comparison_with_other_programs_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = page.partition("\n| name | the other program |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE))
    where = "docs/metrics.md, Comparison with other programs"
    assert set(rows) == set(without_download(METRICS)), f"{where}: a row for each metric"
    for name, row in rows.items():
        program, largest, allowed = (cell.strip() for cell in row.split("|"))
        if name not in GOLDEN["metrics"]:
            assert program == "its formula in float64", f"{where}: {name}"
            assert float(largest) < float(allowed) == FORMULAS[name][1], f"{where}: {name}"
            continue
        golden = GOLDEN["metrics"][name]
        told = float(largest), float(allowed)
        assert told == (golden["largest_difference"], golden["tolerance"]), f"{where}: {name}"
        named = re.findall(r"[\w.]+\.(?:m|py)\b|\w+ \d[\d.]*", program)
        assert named != [], f"{where}: {name}"
        assert [one for one in named if one not in golden["program"]] == [], f"{where}: {name}"


# -- learned metrics: with replaced weights, their input is checked -----------------------------


class Recorder:
    """Records the inputs of the first layer of a network."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.seen.append(inputs[0])


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """LPIPS and DISTS with random features and uniform weights; records the network's inputs."""
    load_piq()
    from piq import perceptual
    from torchvision.models import vgg

    recorder = Recorder()

    class Network:
        def __init__(self) -> None:
            torch.manual_seed(0)
            self.features = vgg.make_layers(vgg.cfgs["D"])
            self.features[0].register_forward_pre_hook(recorder)

    def weights(url: str, **_: object) -> Any:
        if "lpips" in url:
            return [torch.full((1, c, 1, 1), 1 / c) for c in (64, 128, 256, 512, 512)]
        even = torch.full((1, 3 + 64 + 128 + 256 + 512 + 512, 1, 1), 0.5 / 1475)
        return {"alpha": even, "beta": even}

    monkeypatch.setattr(perceptual, "vgg16", lambda **_: Network())
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", weights)
    full_reference._load_network.cache_clear()
    yield recorder
    full_reference._load_network.cache_clear()


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_learned_metrics_expect_rgb_from_0_to_1(name: str, learned: Recorder) -> None:
    gt = tensor(clean("waves"))[..., 40:104, 40:112] / 255
    assert METRICS[name](gt, gt) == pytest.approx(0.0, abs=1e-5)
    learned.seen.clear()
    lq = gt * torch.tensor([1.0, 0.8, 0.6]).view(1, 3, 1, 1)
    score = METRICS[name](lq, gt)
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1)
        for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    for seen, image in zip(learned.seen, (lq, gt), strict=True):
        torch.testing.assert_close(seen * std + mean, image, atol=1e-5, rtol=0)
    assert score > 1e-4
    swapped = METRICS[name](lq.flip(1), gt.flip(1))
    assert abs(swapped - score) > 1e-3 * score


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_eval_scales_images_for_learned_metrics(name: str, learned: Recorder) -> None:
    from c2fdft_cli.engine.evaluate.metrics import find_metrics

    gt = tensor(clean("waves"))[..., :64, :64]
    lq = tensor(worse(clean("waves")))[..., :64, :64]
    want = METRICS[name](lq / 255, gt / 255)
    assert find_metrics(name)[name](lq, gt) == pytest.approx(want, rel=1e-3)
