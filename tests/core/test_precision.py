"""Contexts that keep arithmetic in float32; the tests of the losses check that they use it."""

from __future__ import annotations

import pytest
import torch

from c2fdft_cli.core.precision import exact_products, full_precision


def test_autocast_is_off_on_any_device() -> None:
    a = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(a):
            assert (a @ a).dtype == torch.float32
        with full_precision(a.to("meta")):  # a device without autocast
            pass


def test_exact_products_are_reset_after_an_error() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ValueError, match="no"), exact_products():
        raise ValueError("no")
    assert torch.get_float32_matmul_precision() == before
