"""Scores without a target: direction, range, invariants; test_piq_golden has golden values."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from c2fdft_cli.metrics.full_reference import load_piq
from c2fdft_cli.metrics.no_reference import NO_REFERENCE


def scene(h: int = 96, w: int = 80) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    planes = [120 + 60 * torch.sign(torch.sin(0.4 * x + c) * torch.cos(0.3 * y)) for c in range(3)]
    return torch.stack(planes)[None].double()


def noise(sigma: float, shape: torch.Size) -> torch.Tensor:
    return sigma * torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("sigma", [2.0, 10.0, 30.0])
def test_the_estimated_sigma_is_that_of_the_noise(sigma: float) -> None:
    y, x = torch.meshgrid(torch.arange(160), torch.arange(160), indexing="ij")
    smooth = (128 + 40 * torch.sin(0.05 * x) + 40 * torch.cos(0.04 * y)).expand(1, 3, 160, 160)
    image = smooth + noise(sigma, torch.Size([1, 3, 160, 160]))
    assert NO_REFERENCE["noise_sigma"](image) == pytest.approx(sigma, rel=0.03)


def test_blur_and_variation_follow_the_sharpness() -> None:
    image = scene()
    soft = F.avg_pool2d(image, 5, 1, 2, count_include_pad=False)
    softer = F.avg_pool2d(soft, 5, 1, 2, count_include_pad=False)
    blurs = [NO_REFERENCE["blur_effect"](one) for one in (image, soft, softer)]
    assert blurs == sorted(blurs)
    assert 0 <= blurs[0] < blurs[-1] <= 1
    steps = [NO_REFERENCE["total_variation"](one) for one in (softer, soft, image)]
    assert steps == sorted(steps)
    noisy = image + noise(10, image.shape)
    assert NO_REFERENCE["total_variation"](noisy) > steps[-1]


def test_total_variation_of_a_step() -> None:
    image = torch.zeros(1, 3, 16, 16).double()
    image[..., 8:] = 100  # one step of 100 in each of 16 rows and 3 channels
    assert NO_REFERENCE["total_variation"](image) == pytest.approx(100 * 16 * 3 / (3 * 16 * 16))
    ramp = torch.arange(100.0)
    slope = (ramp + ramp[:, None]).expand(1, 3, 100, 100)  # steps of 1 in both directions
    assert NO_REFERENCE["total_variation"](slope) == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("turn", [lambda x: x.mT, lambda x: x.flip(-1), lambda x: x.flip(-2)])
@pytest.mark.parametrize("name", ["noise_sigma", "total_variation"])
def test_flips_and_transposition_change_little(name: str, turn: object) -> None:
    image = scene() + noise(5, scene().shape)
    assert NO_REFERENCE[name](turn(image)) == pytest.approx(NO_REFERENCE[name](image), rel=0.05)  # type: ignore[operator]


def test_clipped_areas_do_not_count_as_noise_free() -> None:
    image = (torch.full((1, 3, 96, 96), 128.0) + noise(10, torch.Size([1, 3, 96, 96]))).round()
    image[..., :64] = 255
    assert NO_REFERENCE["noise_sigma"](image) == pytest.approx(10, rel=0.1)


def test_scores_of_flat_images(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = torch.full((1, 3, 20, 24), 77.0)
    assert NO_REFERENCE["noise_sigma"](flat) == 0
    assert NO_REFERENCE["total_variation"](flat) == 0
    assert NO_REFERENCE["blur_effect"](flat) == 1
    measure = pytest.importorskip("skimage.measure")
    monkeypatch.setattr(measure, "blur_effect", lambda *_, **__: math.nan)  # before 0.26
    assert NO_REFERENCE["blur_effect"](flat) == 1


@pytest.mark.parametrize("name", NO_REFERENCE)
def test_small_images_have_no_score(name: str) -> None:
    side = NO_REFERENCE[name].min_size
    assert math.isnan(NO_REFERENCE[name](torch.rand(1, 3, side - 1, 100) * 255))
    if not NO_REFERENCE[name].downloads:
        assert math.isfinite(NO_REFERENCE[name](scene(side, side + 3)))


def test_invalid_images_and_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match="expected images of one shape"):
        NO_REFERENCE["noise_sigma"](torch.zeros(2, 3, 20, 20))
    with pytest.raises(ValueError, match="expected images of one shape"):
        NO_REFERENCE["noise_sigma"](torch.zeros(1, 1, 20, 20))
    with pytest.raises(KeyError):
        NO_REFERENCE["niqe"](torch.zeros(1, 3, 20, 20))


def test_brisque_gets_images_from_0_to_1_and_reports_missing_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """piq, which loads the weights of BRISQUE, is replaced."""
    seen: list[torch.Tensor] = []

    class Piq:
        answer: object = 21.5

        def brisque(self, image: torch.Tensor, data_range: float) -> object:
            assert data_range == 1.0
            seen.append(image)
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    piq = Piq()
    monkeypatch.setattr(load_piq(), "brisque", piq.brisque)
    image = scene(40, 40)
    assert NO_REFERENCE["brisque"](image) == 21.5
    torch.testing.assert_close(seen[0], (image / 255).float())
    piq.answer = AssertionError("Expected image with non zero variance of pixel values")
    assert math.isnan(NO_REFERENCE["brisque"](image))
    piq.answer = OSError("no route to host")
    with pytest.raises(ValueError, match="weights of brisque cannot be loaded: no route to host"):
        NO_REFERENCE["brisque"](image)
    piq.answer = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        NO_REFERENCE["brisque"](image)
