"""sweep.json: reading it back, and files that were edited or are of another program."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from c2fdft_cli.engine.sampling.scoring import Scored
from c2fdft_cli.engine.sweep import log as log_module
from c2fdft_cli.engine.sweep.log import SweepLog, Trial, is_of_other_weights
from c2fdft_cli.errors import DataError
from tests.kit.documents import odd_documents

SETTINGS = {"weights": "a", "degradation": {"seed": 1}}


def written(path: Path) -> SweepLog:
    """Save a log of two trials."""
    log = SweepLog(path, SETTINGS, overwrite=False)
    for name, timesteps in (("a", (999, 500)), ("b", (999,))):
        log.scores[Trial(name, 0, timesteps)] = Scored(name, 30.0, 0.9, seconds=0.5)
    log.save({"complete": True})
    return log


def test_saving_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    """Saving after each image would take a time that is quadratic in the number of images."""
    clock, write, saves = [5.0], log_module.atomic_write_text, []

    def slow(path, text):
        clock[0] += 1
        saves.append(clock[0])
        write(path, text)

    monkeypatch.setattr(log_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(log_module, "atomic_write_text", slow)
    log = SweepLog(tmp_path / "sweep.json", SETTINGS, overwrite=False)
    for number in range(65):
        log.add(Trial(f"{number}", 0, (999,)), Scored(f"{number}", 30.0, 0.9, seconds=0.5))
        clock[0] += 1
        log.save_if_due()
    assert saves == [7, 28, 49, 70]
    for _ in range(2):  # what is saved already is not saved again
        log.save_new()
    assert len(saves) == 5
    assert SweepLog(log.path, SETTINGS, overwrite=False).scores == log.scores


def test_an_edited_file_is_read_or_refused_in_one_line(tmp_path):
    path = tmp_path / "sweep.json"
    log = written(path)
    again = SweepLog(path, SETTINGS, overwrite=False)
    assert again.scores == log.scores
    assert {one.seconds for one in again.scores.values()} == {0.5}
    refused = 0
    for odd in odd_documents(json.loads(path.read_text())):
        path.write_text(json.dumps(odd))
        try:
            again = SweepLog(path, SETTINGS, overwrite=False)
        except DataError:
            refused += 1
        else:
            again.save({"complete": True})  # what was read can be written again
            assert all(type(trial.seed) is int for trial in again.scores)
    assert refused > 200


@pytest.mark.parametrize("field", ["seed", "psnr", "ssim", "seconds"])
@pytest.mark.parametrize("value", ["Infinity", "NaN", "1e999", "true", '"3"', "1" * 400])
def test_a_score_that_is_not_a_number_is_refused(tmp_path, field, value):
    path = tmp_path / "sweep.json"
    written(path)
    document = json.loads(path.read_text())
    document["trials"][0][field] = "HERE"
    path.write_text(json.dumps(document).replace('"HERE"', value))
    if field == "seed" and value.isdecimal():
        assert len(SweepLog(path, SETTINGS, overwrite=False).scores) == 2
        return
    with pytest.raises(DataError, match=r"sweep\.json: not a sweep of this program"):
        SweepLog(path, SETTINGS, overwrite=False)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000])
def test_a_file_with_deep_nesting_or_a_huge_number_is_refused(tmp_path, text):
    path = tmp_path / "sweep.json"
    path.write_text(text)
    with pytest.raises(DataError, match="not a sweep of this program"):
        SweepLog(path, SETTINGS, overwrite=False)
    assert SweepLog(path, SETTINGS, overwrite=True).scores == {}


@pytest.mark.parametrize("overwrite", [False, True])
def test_scores_that_the_system_does_not_read_are_not_given_up(tmp_path, monkeypatch, overwrite):
    path = tmp_path / "sweep.json"
    written(path)

    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(DataError, match=r"sweep\.json: cannot read: Input/output error"):
        SweepLog(path, SETTINGS, overwrite=overwrite)
    assert not is_of_other_weights(path, "b")


@pytest.mark.parametrize(
    ("changed", "words", "hint"),
    [
        ({"format": 99}, "not a sweep of this program", "use --overwrite"),
        ({"format_version": "x"}, "not a sweep of this program", "use --overwrite"),
        ({"format_version": 2}, "has format version 2, this program reads 1", "upgrade c2fdft"),
    ],
)
def test_a_file_of_another_format_or_version_is_refused(tmp_path, changed, words, hint):
    path = tmp_path / "sweep.json"
    written(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(DataError, match=words) as caught:
        SweepLog(path, SETTINGS, overwrite=False)
    assert (caught.value.hint or "").startswith(hint)


@pytest.mark.parametrize(("psnr", "ssim"), [(math.inf, 1.0), (math.nan, math.nan), (30.0, 0.9)])
def test_scores_that_json_lacks_are_read_back(tmp_path, psnr, ssim):
    """Equal images have an infinite PSNR, and a failed trial has no scores."""
    log = SweepLog(tmp_path / "sweep.json", SETTINGS, overwrite=False)
    log.scores[Trial("a", 0, (999,))] = Scored("a", psnr, ssim, seconds=0.5)
    log.save({"complete": True})
    (again,) = SweepLog(tmp_path / "sweep.json", SETTINGS, overwrite=False).scores.values()
    assert (again.psnr, again.ssim) == pytest.approx((psnr, ssim), nan_ok=True)


def test_a_sweep_of_other_weights_is_refused(tmp_path):
    path = tmp_path / "sweep.json"
    assert not is_of_other_weights(path, "a")
    written(path)
    assert not is_of_other_weights(path, "a")
    assert is_of_other_weights(path, "b")
    path.write_text("{}")  # another program's file, which is not replaced automatically
    assert not is_of_other_weights(path, "b")


def test_weights_that_differ_are_shown_by_the_start_of_their_sha_256(tmp_path):
    path = tmp_path / "sweep.json"
    settings = {"weights": "a" * 64, "protocol": "rgb"}
    SweepLog(path, settings, overwrite=False).save({"complete": True})
    with pytest.raises(DataError) as error:
        SweepLog(path, {"weights": "b" * 64, "protocol": "y"}, overwrite=False)
    assert error.value.details == (
        "weights: aaaaaaaa in the file, bbbbbbbb now",
        "protocol: 'rgb' in the file, 'y' now",
    )
