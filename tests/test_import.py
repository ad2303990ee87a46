"""`import c2fdft_cli` is light, and offers the documented names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import c2fdft_cli as c2fdft

HEAVY = ("torch", "numpy", "cv2", "PIL", "pydantic", "omegaconf", "rich", "typer")


def python(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.slow
def test_the_import_loads_nothing_heavy():
    loaded = python("import sys, c2fdft_cli; print(*sys.modules)").split()
    assert not {*HEAVY} & {*loaded}


@pytest.mark.slow
def test_torch_is_imported_with_load():
    assert (
        python("import sys, c2fdft_cli; c2fdft_cli.load; print('torch' in sys.modules)") == "True\n"
    )


def test_exactly_the_documented_names_exist():
    for name in c2fdft.__all__:
        assert getattr(c2fdft, name) is not None
    assert set(c2fdft.__all__) <= set(dir(c2fdft))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = c2fdft.lode
