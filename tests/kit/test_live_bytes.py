"""The bytes of the tensors that are alive."""

from __future__ import annotations

import torch

from tests.kit.live_bytes import LiveBytes

KIB = 1024


def test_allocated_and_freed_bytes_are_counted():
    old = torch.ones(256)
    with LiveBytes() as live:
        a = old + 1
        assert live.now == KIB
        b = a.view(16, 16)
        old.add_(1)
        assert live.now == KIB  # a view and an in-place operation allocate nothing
        c = torch.cat([a, a])
        assert live.now == 3 * KIB
        del c
        assert live.now == KIB
        del a
        assert live.now == KIB
        del b
        assert live.now == 0
    assert live.peak == 3 * KIB
