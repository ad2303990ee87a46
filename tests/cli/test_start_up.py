"""Commands that only report a missing file or option do so before torch is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
@pytest.mark.parametrize(
    ("line", "code", "says"), LINES, ids=lambda x: " ".join(x) if isinstance(x, list) else ""
)
def test_early_errors_do_not_load_torch(line: list[str], code: int, says: str, tmp_path) -> None:
    script = f"""
import sys
from c2fdft_cli.cli.app import app
try:
    app({line!r})
except SystemExit as end:
    code = end.code
print("loaded:", *sorted({{"torch", "cv2", "piq"}} & {{*sys.modules}}), code, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert says in done.stderr
    assert done.stderr.splitlines()[-1] == f"loaded: {code}"
