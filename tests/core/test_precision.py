"""Contexts that keep arithmetic in float32; the tests of the losses check that they use it."""

from __future__ import annotations

from threading import Thread

import pytest
import torch

from c2fdft_cli.core.precision import exact_products, full_precision, remember_rounding


def test_autocast_is_off_on_any_device() -> None:
    a = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(a):
            assert (a @ a).dtype == torch.float32
        with full_precision(a.to("meta")):  # a device without autocast
            pass


def test_exact_products_are_reset_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ValueError, match="False"), exact_products():
        raise ValueError(torch.backends.cudnn.allow_tf32)
    assert torch.get_float32_matmul_precision() == before
    assert torch.backends.cudnn.allow_tf32


def test_overlapping_blocks_of_two_threads_leave_the_setting_of_the_program() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        first, second = exact_products(), exact_products()
        for step in (first.__enter__, second.__enter__, lambda: first.__exit__(None, None, None)):
            thread = Thread(target=step)
            thread.start()
            thread.join()
            assert torch.get_float32_matmul_precision() == "highest"
        second.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("allowed", [True, False])
def test_rounding_in_convolutions_is_restored(
    monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", allowed)
    restore = remember_rounding()
    cudnn.allow_tf32 = not allowed
    restore()
    assert cudnn.allow_tf32 == allowed


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9"
)
def test_a_program_may_use_the_newer_interface_for_products() -> None:
    matmul = torch.backends.cuda.matmul
    restore = remember_rounding()
    try:
        matmul.fp32_precision = "tf32"
        with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
            torch.get_float32_matmul_precision()
        with exact_products():
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        restore()
    torch.get_float32_matmul_precision()
