"""`import c2fdft_cli` is light, and offers the documented names."""

from __future__ import annotations

import pytest

import c2fdft_cli as c2fdft
from tests.kit.processes import python

HEAVY = ("torch", "numpy", "cv2", "PIL", "pydantic", "omegaconf", "rich", "typer")


@pytest.mark.slow
def test_the_import_loads_nothing_heavy():
    loaded = python("-c", "import sys, c2fdft_cli; print(*sys.modules)").stdout.split()
    assert "c2fdft_cli" in loaded
    assert not {*HEAVY} & {*loaded}


@pytest.mark.slow
def test_torch_is_imported_with_load():
    script = "import sys, c2fdft_cli; c2fdft_cli.load; print('torch' in sys.modules)"
    assert python("-c", script).stdout == "True\n"


def test_exactly_the_documented_names_exist():
    for name in c2fdft.__all__:
        assert getattr(c2fdft, name) is not None
    assert set(c2fdft.__all__) <= set(dir(c2fdft))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = c2fdft.lode
