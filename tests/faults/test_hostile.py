"""What others have written runs nothing: recipes, and names in tables for spreadsheets.

Shards: tests/data/shards/test_hostile.py; checkpoints: tests/engine/weights/test_checkpoint.py.
"""

from __future__ import annotations

import csv

import pytest

from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.errors import RecipeError
from c2fdft_cli.recipe.files import load_recipe
from tests.kit.command import run
from tests.kit.formula import picture


@pytest.mark.parametrize(
    "text",
    [
        "train: !!python/object/apply:os.system ['touch escaped']\n",
        "train: !!python/name:os.system\n",
        "train: !include /etc/passwd\n",
        "a: &a [1]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",
        "train: {seed: ${oc.env:HOME}}\n",
    ],
)
def test_a_recipe_runs_nothing_and_reads_nothing(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError):
        load_recipe("mine.yaml")
    assert not (tmp_path / "escaped").exists()


def test_cells_of_a_table_are_no_formulas(tmp_path):
    """A file may be called `=cmd|...`: a spreadsheet would run it."""
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for name in ("=1+1", "+2", "-3", "@x", "plain"):
            save_rgb8(tmp_path / kind / f"{name}.png", picture(24, 32, len(name)))
    done = run("eval", tmp_path / "a", tmp_path / "b", "--csv", tmp_path / "rows.csv")
    assert done.exit_code == 0, done.stderr
    with (tmp_path / "rows.csv").open(newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert sorted(names) == ["'+2", "'-3", "'=1+1", "'@x", "plain"]
