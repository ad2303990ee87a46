"""Commands that only report a missing file or option do so before torch is loaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.kit.processes import python

LINES = (
    (["eval", "nowhere", "nowhere2"], 3, "nowhere: no such file or folder"),
    (["eval", "nowhere", "nowhere2", "--protocol", "best"], 2, "--protocol must be"),
    (["restore", "nowhere", "out"], 3, "nowhere: no such file or folder"),
    (["restore", "nowhere", "out", "--tile", "30"], 2, "--tile must be"),
    (["info", "nowhere"], 3, "nowhere: no such file or folder"),
    (["prepare", "nowhere"], 3, "nowhere: no such file or folder"),
    (["train-coarse", "--recipe", "nope"], 2, "there is no recipe 'nope'"),
    (["train-fine"], 4, "--from is missing"),
    (["recipes", "list"], 0, ""),
)


@pytest.mark.slow
def test_early_errors_do_not_load_torch(tmp_path: Path) -> None:
    """One process for all: the first line that loads something is the first with an answer."""
    script = f"""
import sys
from c2fdft_cli.cli.app import app
for line in {[line for line, _, _ in LINES]}:
    try:
        app(line)
    except SystemExit as end:
        code = end.code
    print("loaded:", *sorted({{"torch", "cv2", "piq"}} & {{*sys.modules}}), code, file=sys.stderr)
"""
    done = python("-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = re.split(r"^loaded:(.*)\n", done.stderr, flags=re.MULTILINE)
    assert said.pop() == ""
    found = list(zip(said[::2], said[1::2], strict=True))
    for (words, loaded), (line, code, says) in zip(found, LINES, strict=True):
        assert says in words, line
        assert loaded == f" {code}", line
