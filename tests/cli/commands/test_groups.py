"""`c2fdft recipes` and `c2fdft weights` alone, and what is said of a copied recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.processes import python


@pytest.mark.parametrize("group", ["recipes", "weights"])
@pytest.mark.parametrize("rich", ["1", "0"])
def test_a_group_alone_prints_its_help_once(
    monkeypatch: pytest.MonkeyPatch, group: str, rich: str
) -> None:
    monkeypatch.setenv("TYPER_USE_RICH", rich)
    done = python("-m", "c2fdft_cli", group)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(f"Usage: c2fdft {group} ") == 1


def test_a_copy_says_where_it_is(tmp_path: Path) -> None:
    done = python("-m", "c2fdft_cli", "recipes", "copy", "tiny", tmp_path / "mine.yaml")
    assert done.stdout.startswith(f"written: {tmp_path}/mine.yaml\nnext: c2fdft train-coarse ")
