"""TensorBoard: the numbers of metrics.csv, no step twice, and how it is enabled."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest

from c2fdft_cli.engine.train import saving
from c2fdft_cli.engine.train.events import StepDone
from c2fdft_cli.engine.train.folder import RunFolder
from c2fdft_cli.engine.train.job import train
from c2fdft_cli.engine.train.setup import set_up
from c2fdft_cli.engine.train.tensorboard import MEMORY_TAG, TAGS, TensorBoard
from c2fdft_cli.errors import ResourceError, UsageError
from tests.kit.training import metrics, request, resume, run, stop_after


def read(folder: Path):
    """Read a run by TensorBoard's own reader."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    return events.Reload()


def assert_equals_metrics(folder: Path) -> None:
    events, rows = read(folder), metrics(folder)
    for column, tag in TAGS.items():
        wanted = [(int(row["iteration"]), float(row[column])) for row in rows if row[column]]
        seen = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in seen] == [step for step, _ in wanted], tag
        # event files store float32
        assert [v for _, v in seen] == pytest.approx([v for _, v in wanted], rel=1e-6), tag


def test_scalars_equal_metrics_csv(coarse_run):
    assert_equals_metrics(coarse_run)
    assert all(event.value > 1e6 for event in read(coarse_run).Scalars(MEMORY_TAG))


def test_sample_restorations_are_shown(coarse_run):
    events = read(coarse_run)
    tags = events.Tags()["images"]
    assert len(tags) == 2
    assert all(tag.startswith("samples/") for tag in tags)
    shown = events.Images(tags[0])
    assert [image.step for image in shown] == [6, 12]
    assert shown[0].width == 3 * 56  # degraded, restored, target


def test_a_resumed_run_shows_no_step_twice(tmp_path, shard_folder):
    """Steps after the last saved state are computed again, and shown once."""
    pytest.importorskip("tensorboard")
    stop_after(request("coarse", shard_folder, tmp_path / "run", "train.save_every=4"), 7)
    resume("coarse", tmp_path / "run")
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2
    assert_equals_metrics(tmp_path / "run")


def test_events_are_on_disk_when_the_state_is_saved(tmp_path, shard_folder):
    """A copy of the folder right after a save is what kill -9 would leave."""
    pytest.importorskip("tensorboard")
    job = train(set_up(request("coarse", shard_folder, tmp_path / "run", "train.save_every=4")))
    events = iter(job)
    for event in events:
        if isinstance(event, StepDone) and event.iteration == 5:
            break
    shutil.copytree(tmp_path / "run" / "tensorboard", tmp_path / "copy" / "tensorboard")
    events.close()
    assert [e.step for e in read(tmp_path / "copy").Scalars("train/loss")] == [2, 4]


def test_events_are_flushed_before_each_save(tmp_path, shard_folder, monkeypatch):
    """TensorBoard writes in a thread, which only seldom lags behind."""
    calls, save = [], saving.save_tensors

    def saved(path, content):
        calls.append("save")
        save(path, content)

    monkeypatch.setattr(TensorBoard, "flush", lambda _: calls.append("flush"))
    monkeypatch.setattr(saving, "save_tensors", saved)
    events = iter(train(set_up(request("coarse", shard_folder, tmp_path / "run"))))
    next(events)
    events.close()
    assert calls == ["flush", "save"]


def test_off_writes_nothing(tmp_path, shard_folder):
    off = ("train.tensorboard=false", "coarse.iterations=1")
    run(request("coarse", shard_folder, tmp_path / "run", *off))
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_only_the_main_process_writes(tmp_path):
    board = TensorBoard(tmp_path / "board", "auto", is_main=False)
    board.open(0)
    board.row({"iteration": 1, "loss": "0.5"}, 0)
    board.close()
    assert not (tmp_path / "board").exists()


def test_tensorboard_that_is_requested_must_be_installed(tmp_path, shard_folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        train(set_up(request("coarse", shard_folder, tmp_path / "run", "train.tensorboard=true")))
    assert "not installed" in str(caught.value)
    assert caught.value.hint == "pip install 'c2fdft[logs]'"
    TensorBoard(tmp_path / "board", "auto").open(0)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="board: cannot write the file") as caught:
        TensorBoard(tmp_path / "file" / "board", "true").open(0)
    assert caught.value.hint == "a part of this path is a regular file; choose another folder"


def test_a_disk_that_fails_is_an_error(tmp_path, monkeypatch):
    """TensorBoard writes in a thread, which ends; its error is raised in the main thread too."""
    pytest.importorskip("tensorboard")
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    board = TensorBoard(tmp_path / "board", "true")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(ResourceError, match="board: cannot write the file") as caught:
            board.open(0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.hint == "the file is larger than the file system allows"
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("tensorboard."):
            thread.join()


@pytest.mark.skipif(sys.platform == "darwin", reason="every name is UTF-8 there")
def test_a_run_whose_name_is_not_utf_8_needs_it_off(tmp_path, shard_folder, capfd):
    pytest.importorskip("tensorboard")
    folder = tmp_path / os.fsdecode(b"\xff")
    few = "coarse.iterations=2"
    with pytest.raises(UsageError, match="to a folder whose name is not UTF-8") as caught:
        train(set_up(request("coarse", shard_folder, folder, few)))
    assert "train.tensorboard=false" in caught.value.hint
    assert not folder.exists()
    off = "train.tensorboard=false"
    done, _ = run(request("coarse", shard_folder, folder, few, off))
    assert done.checkpoint.is_file()
    assert not (folder / "tensorboard").exists()
    with RunFolder(folder).log() as log:
        log.info("saved %s", done.checkpoint)
    assert r"\udcff" in (folder / "train.log").read_text(encoding="utf-8")
    assert "Logging error" not in capfd.readouterr().err
