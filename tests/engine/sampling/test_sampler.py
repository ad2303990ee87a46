"""The start noise: frames that share it are sampled once, with unchanged values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from c2fdft_cli.core.diffusion import alpha_bar_of, beta_schedule, gaussian
from c2fdft_cli.engine.sampling import sampler as sampler_module
from c2fdft_cli.engine.sampling.sampler import Sampler, noise_generator
from c2fdft_cli.errors import UsageError
from c2fdft_cli.execution.device import Runtime

RUNTIME = Runtime(torch.device("cpu"))
ALPHA_BAR = alpha_bar_of(beta_schedule())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images in each draw of noise."""
    counts: list[int] = []

    def counting(shape: list[int], sources: list[torch.Generator]) -> Tensor:
        counts.append(shape[0])
        return gaussian(shape, sources)

    monkeypatch.setattr(sampler_module, "gaussian", counting)
    return counts


def make(eta: float = 0.0) -> Sampler:
    return Sampler(ALPHA_BAR, [500, 100], eta)


def run(
    sampler: Sampler, lq: Tensor, names: list[str], sample: int = 0, noise: Tensor | None = None
) -> Tensor:
    return sampler(lambda x, t: x[:, 3:] * x[:, :3], RUNTIME, lq, names, sample, noise)


def test_frames_of_one_name_share_a_draw_and_its_values(drawn: list[int]) -> None:
    lq = torch.rand(3, 3, 8, 16, generator=torch.Generator().manual_seed(1))
    sampler = make()
    first = run(sampler, lq, ["clip"] * 3)
    assert drawn == [1]
    assert torch.equal(run(sampler, lq[:1], ["clip"]), first[:1])
    alone = [run(make(), lq[i : i + 1], ["clip"]) for i in range(3)]
    assert torch.equal(torch.cat(alone), first)
    x_T = gaussian((1, 3, 8, 16), [noise_generator(0, "clip")])
    assert torch.equal(sampler._start(["clip"], 0, lq[:1].shape, lq.device)[0], x_T)


def test_another_name_size_or_sample_has_new_noise(drawn: list[int]) -> None:
    sampler, lq = make(), torch.zeros(1, 3, 8, 16)
    results = [
        run(sampler, lq, ["a"]),
        run(sampler, lq, ["b"]),
        run(sampler, lq, ["a"], sample=1),
        run(sampler, lq.mT, ["a"], sample=1).mT,
    ]
    assert drawn == [1, 1, 1, 1]
    assert not any(torch.equal(results[0], other) for other in results[1:])
    assert torch.equal(run(sampler, lq, ["a"]), results[0])


def test_names_that_differ_and_a_noisy_sampler_draw_for_each_image(drawn: list[int]) -> None:
    lq = torch.rand(2, 3, 8, 16, generator=torch.Generator().manual_seed(1))
    run(make(), lq, ["a", "b"])
    noisy = make(eta=1.0)
    first = run(noisy, lq, ["a", "a"])
    assert torch.equal(run(noisy, lq, ["a", "a"]), first)
    assert drawn == [2, 2, 2]


def test_noise_drawn_ahead_is_the_noise_that_is_drawn(drawn: list[int]) -> None:
    lq = torch.rand(2, 3, 9, 14, generator=torch.Generator().manual_seed(1))
    names, sampler = ["a.png", "b.png"], make()
    want = run(sampler, lq, names)
    noise = [sampler.start_noise(name, 9, 14) for name in names]
    assert all(one is not None and one.shape == (3, 16, 16) for one in noise)
    drawn.clear()
    assert torch.equal(run(sampler, lq, names, noise=torch.stack(noise)), want)  # type: ignore[arg-type]
    assert drawn == []


def test_noise_is_not_drawn_ahead_for_a_noisy_sampler() -> None:
    assert make(eta=0.5).start_noise("a.png", 8, 8) is None


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_large_images_in_slices_have_the_same_values(
    monkeypatch: pytest.MonkeyPatch, eta: float
) -> None:
    lq = torch.rand(2, 3, 21, 16, generator=torch.Generator().manual_seed(1))
    whole = run(make(eta), lq, ["a", "b"])
    for values in (1, 500):  # one row; several, which do not divide the height
        monkeypatch.setattr(sampler_module, "SLICE_VALUES", values)
        assert torch.equal(run(make(eta), lq, ["a", "b"]), whole)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_infinite_values_are_not_clamped(value: float) -> None:
    """They would become white or black, and the image would not be restored again in float32."""

    def overflowing(x: Tensor, t: Tensor) -> Tensor:
        eps_hat = torch.zeros_like(x[:, :3])
        eps_hat[1, 0, 2, 3] = value
        return eps_hat

    image = make()(overflowing, RUNTIME, torch.rand(2, 3, 8, 16), ["a", "b"])
    assert image[0].isfinite().all()
    assert image[1].isnan().nonzero().tolist() == [[0, 2, 3]]


def test_timesteps_that_leave_nothing_of_the_image_are_refused() -> None:
    alpha_bar = alpha_bar_of(beta_schedule("jsd"))
    with pytest.raises(UsageError, match=r"timestep 999 \(alpha_bar is 0\)") as caught:
        Sampler(alpha_bar, [999, 0])
    assert "spacing leading" in (caught.value.hint or "")
    Sampler(alpha_bar, [998, 0])


def test_seeds_of_the_noise_equal_golden_numbers() -> None:
    """A later version must restore the same image from the same seed and name."""
    seeds = {
        (0, "a"): 70371372590122459,
        (7, "IMG.2024"): 6004407460249771072,
        (7, "IMG.2024", 2): 6213360508098707738,
    }
    assert {key: noise_generator(*key).initial_seed() for key in seeds} == seeds


def test_noise_of_a_name_that_is_not_utf_8_depends_on_its_bytes() -> None:
    seeds = {noise_generator(0, name).initial_seed() for name in ("caf\udce9", "caf\udce8")}
    assert len(seeds) == 2
