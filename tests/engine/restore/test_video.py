"""Restoring videos: outputs are complete or absent, and frames are restored like images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av")

from c2fdft_cli.core.diffusion import gaussian
from c2fdft_cli.core.network import DFT
from c2fdft_cli.data.video.probe import probe_video
from c2fdft_cli.data.video.reader import Frame
from c2fdft_cli.data.video.writer import VideoWriter, keeps_10_bits
from c2fdft_cli.engine.restore import video as restore_video
from c2fdft_cli.engine.restore.job import restore
from c2fdft_cli.engine.restore.manifest import MANIFEST_NAME
from c2fdft_cli.engine.restore.result import FrameDone, VideoDone
from c2fdft_cli.engine.sampling import sampler
from c2fdft_cli.engine.sampling.executor import Executor
from c2fdft_cli.errors import DataError, Interrupted, PartialFailure, ResourceError, UsageError
from tests.kit.restore import Request, plan, random_picture, run, save, write_checkpoint
from tests.kit.video import av, frames, make_clip, sound, stamps


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, tiny_net: Callable[..., DFT]) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("weights") / "w.pt", tiny_net()))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    make_clip(folder / "a.mp4", rate="30000/1001")
    make_clip(folder / "sub" / "b.mkv", size="31x21", sound=False, filters="format=yuv444p")
    return folder


@pytest.fixture
def options(weights: str, clips: Path, tmp_path: Path) -> Request:
    return Request(str(clips), str(tmp_path / "out"), weights=weights, grid=(500,), crf=0)


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {MANIFEST_NAME}


def test_a_folder_of_videos_and_images_is_restored(
    options: Request, clips: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    (mixed / "sub").mkdir(parents=True)
    for name in ("a.mp4", "sub/b.mkv"):
        (mixed / name).write_bytes((clips / name).read_bytes())
    save(mixed / "c.png", random_picture(9, 16))
    result = run(options, identity=True, source=str(mixed))
    assert result.failure is None
    out = tmp_path / "out"
    assert files(out) == {"a.mp4", "sub/b.mkv", "c.png"}
    first = next(one for one in result.images if one.source.endswith("a.mp4"))
    assert isinstance(first, VideoDone)
    assert (first.frames, first.frame_rate, first.audio_streams) == (15, "30000/1001", 1)
    assert (first.height, first.width, first.notes) == (48, 64, [])
    assert first.duration == pytest.approx(0.5, abs=0.001)
    for name in ("a.mp4", "sub/b.mkv"):
        assert np.abs(frames(out / name) - frames(mixed / name).astype(float)).mean() < 0.5
        assert stamps(out / name) == stamps(mixed / name)
    for line in map(json.loads, (out / MANIFEST_NAME).read_text().splitlines()):
        status = (out / line["output"]).stat()
        assert line["written"][:2] == [status.st_size, status.st_mtime_ns]
    assert sound(out / "a.mp4") == sound(mixed / "a.mp4")
    again = run(options, identity=True, source=str(mixed))
    assert (len(again.images), [one.doubt for one in again.skipped]) == (0, [None] * 3)
    stale = run(options, source=str(mixed), crf=30).skipped[0]
    assert stale.doubt == "made with other settings: crf 0, now 30"


def test_a_video_that_another_run_wrote_meanwhile_is_kept(
    options: Request, clips: Path, tmp_path: Path
) -> None:
    options.source = str(clips / "a.mp4")
    waiting, output = restore(plan(options, crf=30)), tmp_path / "out" / "a.mp4"
    events = iter(waiting)
    next(events)  # start the work
    run(options)
    made = output.read_bytes()
    *_, late = events
    assert (late.kept, late.existed, late.notes) == ([output], True, [])
    assert output.read_bytes() == made
    assert files(tmp_path / "out") == {"a.mp4"}
    assert [one.doubt for one in run(options).skipped] == [None]
    assert run(options, crf=30).skipped[0].doubt == "made with other settings: crf 0, now 30"
    run(options, crf=30, overwrite=True)
    assert output.read_bytes() != made


def test_10_bits_are_rounded_with_a_note_where_the_encoder_has_only_8(
    options: Request, tmp_path: Path
) -> None:
    source = make_clip(tmp_path / "a.mkv", sound=False, filters="format=yuv420p10le")
    for suffix in (".webm", ".mkv"):
        output = tmp_path / f"out{suffix}"
        result = run(options, identity=True, source=str(source), out=str(output))
        deep = keeps_10_bits(output)
        note = "rounded to 8 bits: the encoder for .webm has no more"
        assert result.images[0].notes == ([] if deep else [note])
        assert probe_video(output).is_deep == deep
        scale = 257 if not deep else 1
        assert np.abs(frames(output) * float(scale) - frames(source)).mean() < 257
    assert deep  # libx264


def test_there_is_an_event_for_each_frame(options: Request, clips: Path) -> None:
    job = restore(plan(options, identity=True, source=str(clips / "a.mp4"), batch=4))
    assert (len(job), job.unit) == (15, "frame")
    events = list(job)
    assert len(events) == 15
    for number, event in enumerate(events[:-1], start=1):
        assert isinstance(event, FrameDone)
        assert (event.frame, event.frames) == (number, 15)
        assert event.fps > 0.01, "since its own start, not the machine's"
        assert event.seconds_left >= 0
    assert isinstance(events[-1], VideoDone)


def still(folder: Path) -> str:
    filters = "format=yuv444p,trim=end_frame=1,loop=4:1:0"
    path = make_clip(folder / "still.mkv", sound=False, filters=filters, options={"crf": "0"})
    assert all(np.array_equal(frame, frames(path)[0]) for frame in frames(path))
    return str(path)


def test_fixed_noise_gives_equal_frames_for_equal_frames(
    options: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[np.ndarray]] = {"fixed": [], "per-frame": []}
    original = restore_video._write
    for noise, restored in seen.items():

        def spy(
            writer: VideoWriter, frames: list[Frame], restored: list[np.ndarray] = restored
        ) -> None:
            restored.extend(frame.pixels for frame in frames)
            original(writer, frames)

        monkeypatch.setattr(restore_video, "_write", spy)
        source = still(tmp_path)
        run(options, source=source, temporal_noise=noise, batch=1, overwrite=True)
    fixed, others = seen["fixed"], seen["per-frame"]
    assert len(fixed) == len(others) == 5
    assert all(np.array_equal(frame, fixed[0]) for frame in fixed)
    assert not any(np.array_equal(frame, others[0]) for frame in others[1:])


@pytest.mark.parametrize(("noise", "counts"), [("fixed", [1]), ("per-frame", [1] * 5)])
def test_what_all_frames_start_from_is_drawn_once(
    noise: str, counts: list[int], options: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def counting(shape: list[int], sources: list[torch.Generator]) -> torch.Tensor:
        drawn.append(shape[0])
        return gaussian(shape, sources)

    monkeypatch.setattr(sampler, "gaussian", counting)
    run(options, source=still(tmp_path), temporal_noise=noise, batch=1)
    assert drawn == counts


@pytest.mark.parametrize(("batch", "noise"), [(0, "fixed"), (2, "per-frame")])
def test_the_batch_changes_nothing(
    batch: int, noise: str, options: Request, clips: Path, tmp_path: Path
) -> None:
    changes = {"source": str(clips / "sub" / "b.mkv"), "temporal_noise": noise}
    run(options, **changes, out=str(tmp_path / "x.mkv"), batch=1)
    run(options, **changes, out=str(tmp_path / "y.mkv"), batch=batch)
    a, b = frames(tmp_path / "x.mkv"), frames(tmp_path / "y.mkv")
    assert np.abs(a.astype(int) - b).max() <= 3


def test_samples_transforms_and_tiles_work_on_frames(
    options: Request, clips: Path, tmp_path: Path
) -> None:
    source = str(clips / "sub" / "b.mkv")
    result = run(options, source=source, samples=2, self_ensemble=True, tile=32)
    assert result.failure is None
    assert result.images[0].calls == 16
    assert (tmp_path / "out" / "b.mkv").exists()


def test_a_damaged_video_is_reported_and_the_rest_restored(
    options: Request, clips: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    data = (clips / "a.mp4").read_bytes()
    (folder / "good.mp4").write_bytes(data)
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    (folder / "text.mkv").write_text("text")
    result = run(options, identity=True, source=str(folder))
    assert isinstance(result.failure, PartialFailure)
    assert result.failure.exit_code == 6
    assert len(result.failure.details) == 2
    assert files(tmp_path / "out") == {"good.mp4"}
    with pytest.raises(DataError, match=r"cut\.mp4"):
        run(options, source=str(folder / "cut.mp4"))


def test_damage_within_a_video_is_noted(options: Request, tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mkv", sound=False)
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [bytes(one) for one in container.demux(video=0) if one.size]
    for packet in packets[1:3]:  # the first packet holds the key frame
        begin = data.index(packet)
        for i in range(begin, begin + len(packet), 7):
            data[i] ^= 255
    source.write_bytes(data)
    (record,) = run(options, source=str(source), batch=1).images
    assert any("damaged packets or frames" in note for note in record.notes)


def test_an_output_that_cannot_be_written_costs_that_video_alone(
    options: Request, clips: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("a file where a folder is to be")
    result = run(options, identity=True, source=str(clips))
    assert isinstance(result.failure, PartialFailure)
    assert "a part of the output path is a regular file" in result.failure.details[0]
    assert files(tmp_path / "out") == {"a.mp4", "sub"}


def test_a_failure_in_the_middle_leaves_no_file(
    options: Request, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def too_much(*words: object) -> object:
        calls.append(words)
        if len(calls) == 3:
            raise ResourceError("out of memory", where="a.mp4")
        return original(*words)  # type: ignore[arg-type]

    original = Executor.start
    monkeypatch.setattr(Executor, "start", too_much)
    result = run(options, identity=True, source=str(clips / "a.mp4"), batch=4)
    assert isinstance(result.failure, ResourceError)
    assert files(tmp_path / "out") == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_leaves_no_file(
    number: signal.Signals, options: Request, clips: Path, tmp_path: Path
) -> None:
    job = restore(plan(options, identity=True, source=str(clips / "a.mp4"), batch=1))

    def kill_while_running() -> None:
        for i, _ in enumerate(job):
            if i == 2:
                os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as caught:
        kill_while_running()
    assert caught.value.exit_code == 128 + number
    assert str(caught.value) == "stopped with 1 of 1 file to do"
    assert caught.value.hint == (
        "run the same command again: finished files are skipped, and the video starts again from "
        "its first frame"
    )
    assert files(tmp_path / "out") == set()


def test_a_signal_before_the_first_video_says_nothing_of_its_frames(
    options: Request, clips: Path, tmp_path: Path
) -> None:
    save(tmp_path / "a.png", random_picture(16, 16))
    source = [str(tmp_path / "a.png"), str(clips / "a.mp4")]
    job = restore(plan(options, identity=True, source=source, batch=1))
    with pytest.raises(Interrupted) as caught:
        job.run(lambda _: os.kill(os.getpid(), signal.SIGINT))
    assert str(caught.value) == "stopped with 1 of 2 files to do"
    assert caught.value.hint == "run the same command again: finished files are skipped"


@pytest.mark.slow
def test_a_crash_of_the_decoder_leaves_finished_outputs_intact(
    options: Request, weights: str, clips: Path, tmp_path: Path
) -> None:
    """The process is killed while it decodes the second video; the next run restores only that."""
    out = tmp_path / "out"
    crash = (
        "import os, sys\n"
        "from c2fdft_cli.__main__ import main\n"
        "from c2fdft_cli.data.video import reader\n"
        "turned = reader.turned\n"
        "def crash(pixels, symmetry):\n"
        "    if pixels.shape[1] == 31: os.kill(os.getpid(), 11)\n"
        "    return turned(pixels, symmetry)\n"
        "reader.turned = crash\n"
        "main()\n"
    )
    words = ["restore", str(clips), str(out), "--weights", weights, "--grid", "500", "--crf", "0"]
    words += ["--precision", "fp32"]  # as in `run`; some processors would use bf16
    command = [sys.executable, "-c", crash, *words]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGSEGV
    assert {name for name in files(out) if not Path(name).name.startswith(".")} == {"a.mp4"}
    assert len(frames(out / "a.mp4")) == 15
    again = run(options)
    assert (again.failure, len(again.images), len(again.skipped)) == (None, 1, 1)
    assert len(frames(out / "sub" / "b.mkv")) == 5


def test_a_job_closed_in_the_middle_leaves_no_file_and_can_be_run_again(
    options: Request, clips: Path, tmp_path: Path
) -> None:
    source = str(clips / "a.mp4")
    events = iter(restore(plan(options, identity=True, source=source, batch=1)))
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert files(tmp_path / "out") == set()
    assert run(options, identity=True, source=source).failure is None
    assert files(tmp_path / "out") == {"a.mp4"}


def test_the_container_follows_the_output(options: Request, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.mkv"
    assert run(options, identity=True, source=str(clips / "a.mp4"), out=str(out)).failure is None
    assert probe_video(out).audio == ("aac",)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"compare": Path("c")}, "--compare"),
        ({"uncertainty": Path("u")}, "--uncertainty"),
        ({"bit_depth": 16}, "--bit-depth"),
        ({"crf": 52}, "--crf"),
        ({"temporal_noise": "none"}, "--temporal-noise"),
    ],
)
def test_options_that_videos_do_not_support_are_refused(
    changes: dict[str, object], where: str, options: Request
) -> None:
    with pytest.raises(UsageError) as caught:
        run(options, **changes)
    assert where in str(caught.value)


def test_outputs_of_the_wrong_kind_are_refused(
    options: Request, clips: Path, tmp_path: Path
) -> None:
    video, image = str(clips / "a.mp4"), str(save(tmp_path / "i.png", random_picture(8, 8)))
    cases = [
        (video, "x.png", "the output of a video must be a video file"),
        (video, "-", "the output of a video must be a video file"),
        (video, "x.gif", r"cannot write videos as '\.gif'"),
        (video, "x.webm", "webm cannot hold this video's sound: aac"),
        (image, "x.mp4", "an image cannot become a video"),
        (video, video, "replace an input"),
    ]
    for source, out, words in cases:
        target = out if out in ("-", video) else str(tmp_path / out)
        with pytest.raises(UsageError, match=words):
            run(options, source=source, out=target)


def test_without_pyav_videos_are_refused(
    options: Request, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match="videos need PyAV") as caught:
        run(options, source=str(clips / "a.mp4"))
    assert caught.value.hint == "pip install 'c2fdft[video]'"
    assert isinstance(run(options).failure, PartialFailure)
