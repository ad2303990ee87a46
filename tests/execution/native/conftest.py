"""The compiled kernels, or skip: what is left without a compiler is tested beside the strips."""

import pytest

from c2fdft_cli.execution.native.library import Kernels, kernels_or_reason


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    """The kernels of this machine."""
    built, reason = kernels_or_reason()
    return built or pytest.skip(reason)
