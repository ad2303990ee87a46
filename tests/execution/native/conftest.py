"""The compiled kernels, or skip: what is left without a compiler is tested beside the strips."""

import os
import shutil
import sys

import pytest

from c2fdft_cli.execution.native.library import COMPILERS, Kernels, kernels_or_reason
from tests.kit.sharing import MISSING_DATA


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    """The kernels of this machine."""
    built, reason = kernels_or_reason()
    if built is not None:
        return built
    # Where golden checks may not be skipped, kernels that fail must not look like none.
    strict = os.environ.get("CI") or os.environ.get(MISSING_DATA) == "fail"
    if strict and sys.platform == "linux" and any(map(shutil.which, COMPILERS)):
        pytest.fail(f"there is a compiler, but no kernels: {reason}")
    pytest.skip(reason)
