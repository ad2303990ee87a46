"""Each list of choices is stated once: the code that uses it supports exactly these."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from c2fdft_cli.core.diffusion import beta_schedule, spaced_timesteps
from c2fdft_cli.core.network import DFT
from c2fdft_cli.core.objectives import fine_loss
from c2fdft_cli.data.synthesis.degrade import MODELS
from c2fdft_cli.engine.weights.convert_options import HALVES
from c2fdft_cli.errors import UsageError
from c2fdft_cli.execution import device
from c2fdft_cli.metrics.protocols import PROTOCOLS
from c2fdft_cli.recipe.files import load_recipe, recipe_names
from c2fdft_cli.vocabulary import (
    DEGRADATIONS,
    PRECISIONS,
    SPACINGS,
    TASKS,
    NormName,
    PackagedTask,
    ProtocolName,
    Schedule,
    Ssim,
    Task,
    check_choice,
)


@pytest.mark.parametrize("name", get_args(Schedule))
def test_every_noise_schedule_is_supported(name: str) -> None:
    assert beta_schedule(name).shape == (1000,)


@pytest.mark.parametrize("name", SPACINGS)
def test_every_spacing_is_supported(name: str) -> None:
    assert len(spaced_timesteps(4, name)) == 4


@pytest.mark.parametrize("name", get_args(NormName))
def test_every_norm_is_supported(name: str) -> None:
    with torch.device("meta"):
        DFT(dim=8, blocks=(1, 1, 1, 1), norm=name)


@pytest.mark.parametrize("name", get_args(Ssim))
def test_every_ssim_is_supported(name: str) -> None:
    image = torch.full((1, 3, 16, 16), 0.5)
    loss = fine_loss(
        lambda x, _: x[:, 3:], torch.linspace(0.9, 0.1, 10), [9, 5], image, image, image, ssim=name
    )
    assert loss.isfinite()


def test_unknown_choices_are_refused_by_the_core() -> None:
    for refuse in (
        lambda: beta_schedule("cosine"),
        lambda: spaced_timesteps(4, "cosine"),
        lambda: DFT(dim=8, blocks=(1, 1, 1, 1), norm="batch"),
    ):
        with pytest.raises(ValueError, match=r"cosine|batch"):
            refuse()


def test_the_keys_of_tables_are_the_choices() -> None:
    assert ("auto", *device.PRECISIONS) == PRECISIONS
    assert set(HALVES) < set(PRECISIONS)
    assert set(PROTOCOLS) == set(get_args(ProtocolName))
    assert tuple(MODELS) == DEGRADATIONS
    assert set(get_args(PackagedTask)) <= set(TASKS)
    assert {*TASKS, "restore"} == set(get_args(Task)), "a `Task` has a row in `vocabulary.TASKS`"


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_recipe_of_its_name(task: str) -> None:
    assert task in recipe_names(), f"add recipes/{task}.yaml: CONTRIBUTING.md, A new recipe"
    assert load_recipe(task).task == task, f"recipes/{task}.yaml must have task: {task}"


def test_an_invalid_choice_is_refused_with_all_choices() -> None:
    choices = "start", "middle", "end"
    assert check_choice("--at", "end", choices) == "end"
    with pytest.raises(UsageError, match=r"^--at must be .*, got 3$"):
        check_choice("--at", 3, choices)  # type: ignore[type-var]
    with pytest.raises(UsageError, match="--at must be start, middle or end, got 'midle'") as e:
        check_choice("--at", "midle", choices)
    assert e.value.hint == "did you mean middle?"
    with pytest.raises(UsageError, match="--to must be onnx, got 'x'") as e:
        check_choice("--to", "x", ("onnx",))
    assert e.value.hint is None
