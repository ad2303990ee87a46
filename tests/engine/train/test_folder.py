"""The folder of a run: its name, and the curves that are drawn in it."""

from __future__ import annotations

import gc
import os
import shutil
import sys

import pytest

from c2fdft_cli.engine.train.folder import RunFolder, draw_curves, find_run, new_run
from c2fdft_cli.errors import UsageError
from tests.kit.training import request, run


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


NAMES = [r"a$\frac$b", "$", "\u96e8"]
if sys.platform == "linux":  # elsewhere all names are Unicode
    NAMES.append(os.fsdecode(b"\xff"))


@pytest.mark.parametrize("name", NAMES)
def test_curves_are_drawn_for_a_run_of_any_name(tmp_path, name, plots):
    run = RunFolder(tmp_path / name)
    run.create({})
    draw_curves(run)
    assert (run.path / "curves.png").stat().st_size > 1000


def test_a_run_folder_that_is_not_empty_is_refused(shard_folder, coarse_run):
    with pytest.raises(UsageError, match="not empty"):
        run(request("coarse", shard_folder, coarse_run))


def test_run_folders_get_unused_names(tmp_path):
    assert new_run(None, "tiny", "coarse", tmp_path).path.name == "tiny-coarse"
    (tmp_path / "tiny-coarse").mkdir()
    assert new_run(None, "tiny", "coarse", tmp_path).path.name == "tiny-coarse-2"
    for number, name in enumerate(("tiny-coarse", "tiny-coarse-2", "other-coarse")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "state.pt").touch()
        os.utime(tmp_path / name / "state.pt", (number, number))
    assert find_run(None, "tiny", "coarse", tmp_path).path.name == "tiny-coarse-2"
    assert find_run(None, None, "coarse", tmp_path).path.name == "other-coarse"
