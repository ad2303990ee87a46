"""The folder of a run: its name, its files, and who may write to it."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager

import pytest

from c2fdft_cli.engine.train import folder
from c2fdft_cli.engine.train.folder import RunFolder, find_run, link, new_run
from c2fdft_cli.errors import UsageError
from tests.kit.training import request, run


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


@pytest.mark.parametrize("numbered", [False, True])
def test_a_run_that_another_process_makes_meanwhile_is_not_replaced(
    tmp_path, monkeypatch, numbered
):
    """The other one trains and ends between the first check and the lock."""
    run, hold, calls = RunFolder(tmp_path / "run", numbered=numbered), folder.hold_folder, []

    @contextmanager
    def late(path, *words):
        if not calls:
            path.mkdir()
            (path / "state.pt").touch()
        with hold(path, *words):
            calls.append(f"hold {path.name}")
            yield
        calls.append(f"release {path.name}")

    monkeypatch.setattr(folder, "hold_folder", late)
    if numbered:
        with run.begun({}):
            assert calls == ["hold run", "release run", "hold run-2"]
            assert run.path.name == "run-2"
    else:
        with pytest.raises(UsageError, match="the run folder is not empty"), run.begun({}):
            pass
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_a_folder_with_checkpoints_but_without_a_state_is_not_empty(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create({})
    run.check_free()
    run.checkpoint_of(3).touch()
    with pytest.raises(UsageError, match="not empty"):
        run.check_free()


def test_the_stamp_of_a_state_changes_with_each_save(tmp_path):
    """A clock may stand still, and a file system may use the same inode again."""
    run, other = RunFolder(tmp_path), tmp_path / "other"
    assert run.state_stamp() is None
    for path in (run.state, other):
        path.touch()
        os.utime(path, (1, 1))
    first = run.state_stamp()
    os.utime(run.state, (2, 2))
    second = run.state_stamp()
    os.utime(run.state, (1, 1))
    os.replace(other, run.state)
    assert len({first, second, run.state_stamp()}) == 3


def test_temporary_files_are_removed_in_all_folders_of_a_run(tmp_path):
    run = RunFolder(tmp_path)
    run.create({})
    left = [one / ".0123456789abcdef.tmp.x" for one in (run.path, run.checkpoints, run.samples)]
    for path in left:
        path.touch()
    run.remove_unfinished()
    assert not any(path.exists() for path in left)


def test_a_file_gets_a_second_name_without_hard_links_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError

    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    link(one, two)
    assert two.samefile(one)
    monkeypatch.setattr(os, "link", refuse)
    link(one, two)
    assert not two.samefile(one)
    assert two.read_text() == "1"


def test_a_run_has_its_newest_state_while_the_next_one_is_saved(tmp_path):
    run = RunFolder(tmp_path)
    run.keep_state()  # before the first one
    run.state.touch()
    run.keep_state()
    assert run.state.samefile(run.previous_state)


def test_a_log_without_lines_makes_no_file(tmp_path):
    with RunFolder(tmp_path).log():
        pass
    assert not list(tmp_path.iterdir())
    assert not RunFolder(tmp_path).has_metrics()


def test_a_run_is_as_new_as_its_state(tmp_path):
    """Not as its previous state, which tells only of a run that lacks its state."""
    for name, state, previous in (("a", 10, 1), ("b", 5, 5)):
        (tmp_path / f"tiny-coarse-{name}").mkdir()
        (tmp_path / f"tiny-coarse-{name}" / "env.json").write_text('{"stage": "coarse"}')
        for file, at in (("state.pt", state), ("state-previous.pt", previous)):
            (tmp_path / f"tiny-coarse-{name}" / file).touch()
            os.utime(tmp_path / f"tiny-coarse-{name}" / file, (at, at))
    assert find_run(None, None, "coarse", tmp_path).path.name == "tiny-coarse-a"


def test_a_run_is_finished_with_all_iterations_of_its_recipe(tmp_path, coarse_run):
    run = RunFolder(tmp_path)
    for name in ("coarse.pt", "recipe.yaml", "metrics.csv"):
        shutil.copy(coarse_run / name, tmp_path)
    text = (tmp_path / "recipe.yaml").read_text()
    assert run.is_finished("coarse")
    (tmp_path / "recipe.yaml").write_text(text.replace("iterations: 12", "iterations: 13"))
    assert not run.is_finished("coarse")
    (tmp_path / "recipe.yaml").write_text(text.replace("iterations: 12", "iterations: 11"))
    assert run.is_finished("coarse")
    (tmp_path / "coarse.pt").rename(tmp_path / "moved.pt")  # as if killed before it was written
    assert not run.is_finished("coarse")
    (tmp_path / "moved.pt").rename(tmp_path / "coarse.pt")
    (tmp_path / "recipe.yaml").write_text("garbage")
    assert run.is_finished("coarse")
    (tmp_path / "recipe.yaml").write_text(text)
    run.metrics.unlink()
    assert not run.is_finished("coarse")
