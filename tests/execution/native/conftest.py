"""The compiled kernels. Without a compiler these tests are skipped; the strips' tests remain."""

import os
import shutil
import sys
from typing import NoReturn

import pytest
import torch

from c2fdft_cli.execution.native.library import (
    AMX,
    COMPILERS,
    NO_BF16,
    Kernels,
    kernels_or_reason,
)
from tests.kit.sharing import MISSING_DATA


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    """The float32 kernels compiled for this machine; skips the test if there are none."""
    found = built(torch.float32)
    if not found.can_train:
        lacking("torch's libraries have no sgemm_")
    return found


@pytest.fixture(scope="session", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def both_kernels(request: pytest.FixtureRequest) -> Kernels:
    """The kernels of each precision; skips the test if this machine has none."""
    return built(request.param)


def built(dtype: torch.dtype) -> Kernels:
    found, reason = kernels_or_reason(dtype)
    if found is not None:
        return found
    if dtype == torch.bfloat16 and reason in (NO_BF16, AMX):
        pytest.skip(reason)
    return lacking(reason)


def lacking(reason: str) -> NoReturn:
    """Skip the test; fail if golden checks must not be skipped, as then no failed build may be."""
    strict = os.environ.get("CI") or os.environ.get(MISSING_DATA) == "fail"
    if strict and sys.platform == "linux" and any(map(shutil.which, COMPILERS)):
        pytest.fail(f"there is a compiler, but no kernels: {reason}")
    pytest.skip(reason)
