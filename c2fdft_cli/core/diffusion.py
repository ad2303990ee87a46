"""Noise schedules, timesteps, noising, implicit sampler: docs/paper.md, eqs. (8) to (16)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

PredictNoise: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A function of (x_t: `[n, 3, h, w]`, t: `[n]`) that returns eps_hat."""

T = 1000


def beta_schedule(
    name: str = "linear", steps: int = T, start: float = 1e-4, end: float = 0.02
) -> Tensor:
    """Return beta_t, `[steps]` float64: docs/paper.md, eq. (8).

    Args:
        name: "linear" (the paper's), "quad", "const", "jsd" or "sigmoid".
        steps: the number of timesteps, T.
        start: the first beta.
        end: the last beta.

    Raises:
        ValueError: an unknown name, or values outside 0 < start <= end < 1.
    """
    if not 0 < start <= end < 1 or steps < 1:
        raise ValueError(f"need 0 < start <= end < 1 and steps >= 1, got {start}, {end}, {steps}")
    f64 = torch.float64
    if name == "quad":
        return torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=f64).square()
    if name == "const":
        return torch.full((steps,), end, dtype=f64)
    if name == "jsd":
        return 1 / torch.linspace(steps, 1, steps, dtype=f64)
    if name == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, steps, dtype=f64)) * (end - start) + start
    if name == "linear":
        return torch.linspace(start, end, steps, dtype=f64)
    raise ValueError(f"unknown schedule {name!r}")


def alpha_bar_of(betas: Tensor) -> Tensor:
    """Return alpha_bar_t = prod_{s <= t} (1 - beta_s), `[T]` float32, multiplied in float64."""
    return (1 - betas.double()).cumprod(0).float()


def spaced_timesteps(steps: int, spacing: str = "linspace", total: int = T) -> list[int]:
    """Return the descending timesteps of `steps` sampling steps: docs/paper.md, "Timesteps".

    Args:
        steps: number of sampling steps, each one network call, 1 .. total.
        spacing: "linspace", `round(linspace(total - 1, 0, n))` half to even, n = 1 is
            [total - 1]; "leading", `arange(n) * (total // n)` reversed; "trailing",
            `round(arange(total, 0, -total / n)) - 1`.
        total: the number of timesteps of the schedule, T.

    Raises:
        ValueError: steps outside 1 .. total, or an unknown spacing.
    """
    if not 1 <= steps <= total:
        raise ValueError(f"steps must be 1 to {total}, got {steps}")
    # Fractions, because a quotient of floats may fall on the wrong side of a half.
    if spacing == "linspace":
        if steps == 1:
            return [total - 1]
        last = total - 1
        return [round(Fraction(last * (steps - 1 - i), steps - 1)) for i in range(steps)]
    if spacing == "leading":
        return [i * (total // steps) for i in reversed(range(steps))]
    if spacing == "trailing":
        return [round(Fraction(total * (steps - i), steps)) - 1 for i in range(steps)]
    raise ValueError(f"unknown spacing {spacing!r}")


def check_timesteps(timesteps: Sequence[int], total: int = T) -> list[int]:
    """Return them as a list; ValueError unless they descend strictly within 0 .. total - 1."""
    timesteps = [int(t) for t in timesteps]
    if not timesteps:
        raise ValueError("expected at least one timestep")
    if not all(0 <= t < total for t in timesteps):
        raise ValueError(f"timesteps must be 0 to {total - 1}, got {timesteps}")
    if any(a <= b for a, b in pairwise(timesteps)):
        raise ValueError(f"timesteps must descend, got {timesteps}")
    return timesteps


def check_start(t: int, alpha_bar_t: float) -> None:
    """Raise ValueError if sampling cannot start at t because nothing of the image is left there.

    This is the case at T - 1 of "jsd", and wherever alpha_bar is 0 in float32.
    """
    if not alpha_bar_t > 0:
        raise ValueError(f"nothing of the image is left at timestep {t} (alpha_bar is 0)")


def q_sample(gt: Tensor, t: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t = sqrt(alpha_bar_t) * gt + sqrt(1 - alpha_bar_t) * eps: docs/paper.md, eq. (9).

    Args:
        gt: `[n, 3, h, w]` in [-1, 1].
        t: integer timesteps, `[n]`.
        noise: eps, of the shape of gt.
        alpha_bar: `[T]`, on the device of gt.
    """
    a = alpha_bar[t][:, None, None, None]
    return a.sqrt() * gt + (1 - a).sqrt() * noise


def ddim_step(x: Tensor, eps_hat: Tensor, a_t: float, a_next: float, c1: float = 0.0) -> Tensor:
    """Return x at the next timestep, before noise of strength c1 is added: eqs. (13) to (15).

    Args:
        x: x_t, `[n, 3, h, w]` float32.
        eps_hat: the network's estimate of its noise, of the same shape.
        a_t, a_next: alpha_bar at the two timesteps.
        c1: strength of the noise that the sampler adds afterwards.
    """
    x_0 = (x - math.sqrt(1 - a_t) * eps_hat) / math.sqrt(a_t)
    return math.sqrt(a_next) * x_0 + math.sqrt(max(1 - a_next - c1**2, 0.0)) * eps_hat


def ddim_sample(
    predict_noise: PredictNoise,
    x_T: Tensor,
    timesteps: Sequence[int],
    alpha_bar: Tensor,
    eta: float = 0.0,
    generators: Sequence[torch.Generator] | None = None,
    step: Callable[[Tensor, Tensor, float, float, float], Tensor] = ddim_step,
) -> Tensor:
    """Implicit sampler, one network call per timestep: docs/paper.md, eqs. (13) to (15).

    Differentiable. The caller decides gradient mode, device and precision; the sampler's own
    arithmetic is float32.

    Args:
        predict_noise: returns eps_hat for (x_t, t).
        x_T: start noise, `[n, 3, h, w]`.
        timesteps: descending timesteps, such as `spaced_timesteps(4)`.
        alpha_bar: `[T]`; if it is not on the CPU, reading it waits for its device.
        eta: 0 is deterministic given x_T; 1 adds the noise of an ancestral sampler.
        generators: sources of that noise, one per image; required if eta > 0.
        step: `ddim_step`, or a function that computes the same in another way.

    Returns:
        x_0, `[n, 3, h, w]` float32, about [-1, 1] and not clamped.

    Raises:
        ValueError: timesteps that do not descend, or start where alpha_bar is 0; or eta > 0
            without generators.
    """
    timesteps = check_timesteps(timesteps, len(alpha_bar))
    if eta > 0 and generators is None:
        raise ValueError("eta > 0 adds noise: pass a generator for each image")
    # Python floats: the coefficients are computed in float64, and no step waits for a GPU to
    # return them. The last step leads to the image itself, alpha_bar = 1.
    a = [*alpha_bar.cpu()[timesteps].tolist(), 1.0]
    check_start(timesteps[0], a[0])
    x = x_T.float()
    for i, t in enumerate(timesteps):
        a_t, a_next = a[i], a[i + 1]
        # Expanded, not filled: the network recognises by stride 0 that the batch shares one time.
        time = x.new_full((1,), t).expand(len(x))
        # If a_t rounds to 1, there is no noise to replace.
        share = (1 - a_t / a_next) * (1 - a_next) / (1 - a_t) if a_t < 1 else 0.0
        c1 = eta * math.sqrt(share)
        # No name for eps_hat: it would stay in memory during the next network call.
        x = step(x, predict_noise(x, time).float(), a_t, a_next, c1)
        if c1 > 0 and generators is not None:
            x = x + c1 * gaussian(x.shape, generators, x.device)
    return x


def gaussian(
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Sample standard normal noise on the generators' device, and move it to `device`.

    With one generator per image, an image's noise does not depend on its batch.

    Returns:
        `[n, ...]` float32.
    """
    if len(generators) != shape[0]:
        raise ValueError(f"{len(generators)} generators for a batch of {shape[0]}")
    # The dtype is stated, because a program may have changed torch's default.
    float32, size = torch.float32, tuple(shape[1:])
    rows = [torch.randn(size, generator=g, device=g.device, dtype=float32) for g in generators]
    return torch.stack(rows).to(device)


def conditioned(net: PredictNoise, lq: Tensor) -> PredictNoise:
    """Bind the degraded image to the network as its condition: docs/paper.md, eq. (1).

    Args:
        net: called with `cat([2 * lq - 1, x_t])` and t.
        lq: `[n, 3, h, w]` in [0, 1].
    """
    condition = 2 * lq - 1
    return lambda x_t, t: net(torch.cat([condition, x_t], dim=1), t)


def to_image(x_0: Tensor) -> Tensor:
    """Return the restored image, clamp((x_0 + 1) / 2, 0, 1): docs/paper.md, eq. (16)."""
    return ((x_0 + 1) / 2).clamp(0, 1)
