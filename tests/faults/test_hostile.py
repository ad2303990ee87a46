"""Untrusted recipes, tables and names execute nothing and never escape the output folder.

Shards: tests/data/shards/test_hostile.py; checkpoints: tests/engine/weights/test_checkpoint.py.
"""

from __future__ import annotations

import csv

import pytest

from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.data.shards.format import Entry
from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.engine.restore.inputs import find_inputs
from c2fdft_cli.engine.restore.options import Writing
from c2fdft_cli.engine.restore.outputs import plan_outputs
from c2fdft_cli.errors import RecipeError
from c2fdft_cli.recipe.files import load_recipe
from tests.kit.command import run
from tests.kit.formula import picture
from tests.kit.shards import HEADER, pairs_of, write_shard


@pytest.mark.parametrize(
    "text",
    [
        "task: !!python/object/apply:os.system ['touch escaped']\n",
        "task: !!python/name:os.system\n",
        "task: !include /etc/passwd\n",
    ],
)
def test_a_recipe_runs_nothing_and_reads_nothing(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError, match="not a YAML recipe") as caught:
        load_recipe("mine.yaml")
    assert "constructor for the tag" in str(caught.value.hint)
    assert not (tmp_path / "escaped").exists()


def test_cells_of_a_table_are_no_formulas(tmp_path):
    """A file may be named `=cmd|...`, which a spreadsheet would run as a formula."""
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for name in ("=1+1", "+2", "-3", "@x", "plain"):
            save_rgb8(tmp_path / kind / f"{name}.png", picture(24, 32, len(name)))
    done = run("eval", tmp_path / "a", tmp_path / "b", "--csv", tmp_path / "rows.csv")
    assert done.exit_code == 0, done.stderr
    with (tmp_path / "rows.csv").open(newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert sorted(names) == ["'+2", "'-3", "'=1+1", "'@x", "plain"]


def test_a_list_of_files_never_leads_out_of_the_output_folder(tmp_path):
    """The common part of the listed paths is dropped and the rest mirrored, whatever it holds."""
    names = ("a/x.png", "b/CON.png", "b/x..png", "b/...png", "c/.. .png")
    for number, name in enumerate(names):
        path = tmp_path / "far" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_rgb8(path.with_name("made.png"), picture(24, 32, number))
        path.with_name("made.png").rename(path)
    (tmp_path / "near").mkdir()
    lines = (*(f"../far/{name}" for name in names), str(tmp_path / "far/a/../a/x.png"), "../..")
    (tmp_path / "near/list.txt").write_text("\n".join(lines))
    inputs = find_inputs([f"@{tmp_path}/near/list.txt"])
    items, _ = plan_outputs(inputs, str(tmp_path / "out"), Writing())
    places = [item.output.resolve() for item in items]
    assert len(set(places)) == len(places) >= len(names)
    assert all(place.is_relative_to((tmp_path / "out").resolve()) for place in places)


@pytest.mark.parametrize("line", ["/", "."])
def test_a_list_may_name_a_folder_that_contains_all_files(tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    save_rgb8(tmp_path / "a/x.png", picture(24, 32, 1))
    (tmp_path / "list.txt").write_text(f"a/x.png\n{line}\n./y.png")
    inputs = find_inputs(["@list.txt"])
    items, _ = plan_outputs(inputs, "out", Writing())
    assert len(items) == 3
    assert "folder" in str(items[1].source.problem)


@pytest.mark.parametrize(
    "name", ["../out", "/etc/out", "CON", "a.", "NUL.png", "..\\x", "a/../../b"]
)
def test_names_in_shards_are_no_paths(tmp_path, name):
    """Names are displayed and seed the noise; no file of such a name is read or written."""
    path = tmp_path / "shards/train-00000.h5"
    path.parent.mkdir()
    entry = Entry(name, 5, 7)
    write_shard(path, [entry], pairs_of([entry]), HEADER)
    done = run("info", path.parent)
    assert done.exit_code == 0, done.stderr
    assert [one.name for one in tmp_path.rglob("*")] == ["shards", path.name]
    assert ShardSet.open(path).names == [name]
