"""What a program has set in torch and NumPy changes nothing here, and is the same afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from threading import Thread

import numpy as np
import pytest
import torch
from torch import nn

from c2fdft_cli.execution import surroundings
from c2fdft_cli.execution.surroundings import change_until_return, seeded, usual_settings
from c2fdft_cli.process_settings import ProcessSettings


def state() -> tuple[object, ...]:
    return (
        torch.get_default_dtype(),
        torch.empty(0).device,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.enabled,
        torch.serialization.get_crc32_options(),
        np.geterr(),
    )


@pytest.fixture
def program() -> Iterator[None]:
    """A program that has set everything differently."""
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.float32)
        stack.callback(torch.set_float32_matmul_precision, "highest")
        stack.callback(torch.serialization.set_crc32_options, True)
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        torch.serialization.set_crc32_options(False)
        stack.enter_context(torch.device("meta"))
        stack.enter_context(torch.autocast("cpu"))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(np.errstate(all="raise"))
        yield


@pytest.mark.usefixtures("program")
def test_settings_are_the_usual_ones_within_and_the_programs_afterwards() -> None:
    before = state()
    with usual_settings():
        usual = (torch.float32, torch.device("cpu"), True, False, False, "highest", True, True)
        errors = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
        assert state() == (*usual, errors)
        assert torch.ones(1).dtype == torch.float32
    assert state() == before
    with pytest.raises(ValueError, match="no"), usual_settings():
        raise ValueError("no")
    assert state() == before


@pytest.mark.usefixtures("program")
def test_calls_that_overlap_restore_what_was_before_the_first() -> None:
    first, second = usual_settings(), usual_settings()
    first.__enter__()
    with second:  # as in another thread
        torch.set_float32_matmul_precision("high")  # as a call in TF32 does
        with usual_settings():
            assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_default_dtype() == torch.float32
    assert torch.get_default_dtype() == torch.float32
    first.__exit__(None, None, None)
    assert torch.get_default_dtype() == torch.float64
    assert torch.get_float32_matmul_precision() == "medium"


def test_what_the_program_sets_meanwhile_remains() -> None:
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.float32)
        stack.callback(torch.set_float32_matmul_precision, "highest")
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        with usual_settings():
            torch.set_default_dtype(torch.bfloat16)
        assert torch.get_default_dtype() == torch.bfloat16
        with usual_settings(cpu_inference=True):
            assert torch.get_float32_matmul_precision() == "highest"
            assert torch.get_default_dtype() == torch.bfloat16
            torch.set_float32_matmul_precision("high")
        assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("name", ["set_default_dtype", "set_float32_matmul_precision"])
@pytest.mark.parametrize("after", [True, False])
def test_an_exception_of_a_signals_handler_leaves_no_setting_changed(
    monkeypatch: pytest.MonkeyPatch, name: str, after: bool
) -> None:
    """It may be raised between any two steps, also just before or after a change."""
    before, change = state(), getattr(torch, name)

    def interrupted(value: object) -> None:
        monkeypatch.setattr(torch, name, change)
        if after:
            change(value)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, name, interrupted)
    with pytest.raises(KeyboardInterrupt), usual_settings():
        pass
    assert state() == before
    with usual_settings():
        assert torch.get_default_dtype() == torch.float32
    assert state() == before


@pytest.mark.parametrize("used", [True, False])
def test_the_current_gpu_is_the_same_afterwards_if_the_call_was_the_first_to_use_it(
    monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    with usual_settings():
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
        if used:
            torch.cuda.set_device(1)
    assert current == [1, 0] * used


def test_a_forked_process_has_the_programs_settings_unless_it_is_within_a_call() -> None:
    """A call of another thread never returns there."""

    def in_fork() -> tuple[torch.dtype, torch.dtype, torch.dtype]:
        torch.set_default_dtype(torch.float64)
        calls = ProcessSettings(surroundings._set_usual_values)
        others = calls.changed()
        thread = Thread(target=others.__enter__)
        thread.start()
        thread.join()
        outside = torch.get_default_dtype()
        calls.forget_other_threads()
        restored = torch.get_default_dtype()
        with calls.changed():
            calls.forget_other_threads()
            within = torch.get_default_dtype()
        assert torch.get_default_dtype() == torch.float64
        return outside, restored, within

    try:
        assert in_fork() == (torch.float32, torch.float64, torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_setting_that_a_call_changes_is_restored_when_the_last_call_returns() -> None:
    values = [0]

    def change(new: int) -> None:
        old = values[0]
        change_until_return(lambda: values.__setitem__(0, new), lambda: values.__setitem__(0, old))

    with usual_settings():
        with usual_settings():
            change(1)
            change(2)
        assert values == [2]
    assert values == [0]
    change(3)  # a command changes it for good
    with usual_settings():
        assert values == [3]
    assert values == [3]


def test_seeded_weights_leave_the_random_state_of_cpu_and_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def weights(make: Callable[[], nn.Module]) -> torch.Tensor:
        return next(make().parameters()).detach()

    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    before = torch.get_rng_state()
    found = []
    for seed in (3, 3, 4):
        with seeded(seed):
            found.append(weights(lambda: nn.Linear(4, 4)))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), before)
    assert not seeds


def test_one_thread_at_a_time_makes_seeded_weights() -> None:
    found = []

    def make() -> None:
        with seeded(4):
            found.append(torch.rand(2))

    other = Thread(target=make)
    with seeded(3):
        other.start()
        other.join(0.05)
        assert not found
    other.join()
    with seeded(4):
        assert torch.equal(torch.rand(2), found[0])
