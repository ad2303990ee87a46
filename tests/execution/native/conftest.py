"""The compiled kernels. Without a compiler these tests are skipped; the strips' tests remain."""

import os
import shutil
import sys

import pytest

from c2fdft_cli.execution.native.library import COMPILERS, Kernels, kernels_or_reason
from tests.kit.sharing import MISSING_DATA


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    """The kernels compiled for this machine; skips the test if there are none."""
    built, reason = kernels_or_reason()
    if built is not None:
        return built
    # If golden checks must not be skipped, a failed build must not be skipped either.
    strict = os.environ.get("CI") or os.environ.get(MISSING_DATA) == "fail"
    if strict and sys.platform == "linux" and any(map(shutil.which, COMPILERS)):
        pytest.fail(f"there is a compiler, but no kernels: {reason}")
    pytest.skip(reason)
