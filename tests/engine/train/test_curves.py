"""The curves that are drawn in the folder of a run."""

from __future__ import annotations

import gc
import os
import shutil
import sys

import pytest

from c2fdft_cli.engine.train.curves import draw_curves
from c2fdft_cli.engine.train.folder import RunFolder


def test_drawing_curves_leaves_no_memory_behind(tmp_path, coarse_run, plots):
    """Figures are reference cycles, which Python collects too rarely in a long training."""
    from matplotlib.figure import Figure

    shutil.copy(coarse_run / "metrics.csv", tmp_path)
    gc.disable()
    try:
        assert draw_curves(RunFolder(tmp_path))
        assert (tmp_path / "curves.png").is_file()
        assert not [one for one in gc.get_objects() if type(one) is Figure]
    finally:
        gc.enable()


NAMES = [r"a$\frac$b", "$\u96e8"]
if sys.platform == "linux":  # elsewhere all names are Unicode
    NAMES.append(os.fsdecode(b"\xff"))


@pytest.mark.parametrize("name", NAMES)
def test_curves_are_drawn_for_a_run_of_any_name(tmp_path, name, plots):
    run = RunFolder(tmp_path / name)
    run.create({})
    draw_curves(run)
    assert (run.path / "curves.png").stat().st_size > 1000
