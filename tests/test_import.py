"""`import c2fdft_cli` is light, and offers the documented names."""

from __future__ import annotations

import re

import pytest

import c2fdft_cli as c2fdft
from tests.kit.processes import python

HEAVY = ("torch", "numpy", "cv2", "PIL", "pydantic", "omegaconf", "rich", "typer")


@pytest.mark.slow
def test_the_import_loads_nothing_heavy():
    loaded = python("-c", "import sys, c2fdft_cli; print(*sys.modules)").stdout.split()
    assert "c2fdft_cli" in loaded
    assert not {*HEAVY} & {*loaded}


@pytest.mark.acceptance
def test_torch_is_imported_with_load():
    script = "import sys, c2fdft_cli; c2fdft_cli.load; print('torch' in sys.modules)"
    assert python("-c", script).stdout == "True\n"


def test_exactly_the_documented_names_exist():
    for name in c2fdft.__all__:
        assert getattr(c2fdft, name) is not None
    assert set(c2fdft.__all__) <= set(dir(c2fdft))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = c2fdft.lode


@pytest.mark.acceptance
def test_a_type_checker_knows_the_names(tmp_path):
    mypy = pytest.importorskip("mypy.api")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    text, _, _ = mypy.run(["--strict", "--follow-imports=silent", str(program)])
    assert re.findall(r"program.py:(\d+): error: (.*)  \[", text) == [
        ("5", 'Module has no attribute "lode"')
    ], text


PROGRAM = """
import numpy as np, numpy.typing as npt
import c2fdft_cli as c2fdft
image: npt.NDArray[np.uint8] = np.zeros((8, 8, 3), np.uint8)
c2fdft.lode("derain")
restorer: c2fdft.Restorer = c2fdft.load("derain")
images: list[npt.NDArray[np.uint8]] = restorer((image, image), progress=print)
result: c2fdft.RestoreResult = restorer.restore_folder("in", "out")
def show(event: c2fdft.TrainEvent) -> None:
    if isinstance(event, c2fdft.StepDone):
        print(event.loss)
trained: c2fdft.TrainResult = c2fdft.train("coarse", on_event=show)
"""
