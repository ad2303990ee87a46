"""The manifest of how each file was made: named differences, identified files, damaged lines."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from c2fdft_cli.engine.restore import manifest
from c2fdft_cli.engine.restore.manifest import MANIFEST_NAME, Manifest
from c2fdft_cli.engine.restore.plan import _unread
from c2fdft_cli.errors import DataError, ResourceError
from tests.kit.restore import refuse_records

CHANGED = "this program did not write it, or it was changed since"
OTHER_INPUT = "its input has changed since, or it was made from another one"
SETTINGS: dict[str, Any] = {
    "weights": "0123456789" + "w" * 54,
    "grid": [999, 500],
    "precision": "fp32",
    "draws": 1,
    "eta": 0.0,
    "seed": 0,
    "quality": 95,
    "bit_depth": None,
    "tile": None,
    "self_ensemble": False,
    "temporal_noise": "fixed",
    "crf": 18,
}


def recorded(
    output: Path, source: Path, settings: Any = SETTINGS, content: str = "restored"
) -> Path:
    """Record an output; return the temporary file, which has not got its name yet."""
    temporary = output.with_name(".new")
    temporary.write_text(content)
    Manifest(output.parent, settings).record(output, source, temporary)
    return temporary


def write(output: Path, source: Path, settings: Any = SETTINGS, content: str = "restored") -> Path:
    """Record and write an output; return it."""
    return recorded(output, source, settings, content).replace(output)


def put_line(output: Path, **facts: object) -> None:
    """Put a line about an output into the manifest, with some facts of its own."""
    line = {"output": output.name, "source": None, "written": [0, 0, 0], "made_with": SETTINGS}
    (output.parent / MANIFEST_NAME).write_text(json.dumps(line | facts) + "\n")


def changed(**settings: Any) -> dict[str, Any]:
    return {**SETTINGS, **settings}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jpg"
    path.write_text("an image")
    return path


@pytest.mark.parametrize(
    "setting",
    [{"weights": "v"}, {"grid": [999]}, {"precision": "bf16"}, {"draws": 2}, {"eta": 1.0},
     {"seed": 1}, {"quality": 9}, {"bit_depth": 8}, {"tile": 64}, {"self_ensemble": True},
     {"temporal_noise": "per-frame"}, {"crf": 0}, {"of a later version": 1}],
)  # fmt: skip
def test_every_setting_counts(tmp_path: Path, source: Path, setting: dict[str, Any]) -> None:
    output = tmp_path / ("a.jpg" if "quality" in setting else "a.mp4")
    write(output, source, changed(**setting))
    doubt = Manifest(tmp_path, SETTINGS).doubt(output, source)
    assert doubt is not None
    assert doubt.startswith("made with other settings")
    assert Manifest(tmp_path, changed(**setting)).doubt(output, source) is None


@pytest.mark.parametrize("name", ['"', 'a", "b', "\\", '\\"}', "\u00e9\U0001f600", "\udcff"])
def test_outputs_of_any_name_are_recognised(tmp_path: Path, source: Path, name: str) -> None:
    recorded(tmp_path / name, source)
    known = Manifest(tmp_path, SETTINGS)
    assert known.was_written(tmp_path / name)
    assert not known.was_written(tmp_path / f"{name}x")


def test_a_file_made_with_the_same_settings_is_up_to_date(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "x" / "a.png"
    output.parent.mkdir()
    output.write_text("restored")
    Manifest(tmp_path, SETTINGS).record(output, source, output)
    assert Manifest(tmp_path, SETTINGS).doubt(output, source) is None
    unknown = Manifest(tmp_path, SETTINGS).doubt(tmp_path / "b.png", source)
    assert unknown == "there is no record of how it was made"
    source.write_text("another image")
    stale = Manifest(tmp_path, SETTINGS).doubt(output, source)
    assert stale == OTHER_INPUT


def test_differences_are_named(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "a.png"
    output.write_text("restored")
    Manifest(tmp_path, SETTINGS, "w.pt").record(output, source, output)
    assert Manifest(tmp_path, SETTINGS, "copy.pt").doubt(output, source) is None
    settings = changed(weights="v" * 64, grid=[500], draws=8, seed=3)
    doubt = Manifest(tmp_path, settings, "v.pt").doubt(output, source)
    assert doubt == (
        "made with other settings: weights w.pt 01234567, now v.pt vvvvvvvv; "
        "timesteps 999,500, now 500; samples 1, now 8; seed 0, now 3"
    )


def test_differences_are_named_in_words(tmp_path: Path, source: Path) -> None:
    write(tmp_path / "a.mp4", source, changed(tile=None, self_ensemble=False))
    settings = changed(tile=512, self_ensemble=True, temporal_noise="per-frame")
    doubt = Manifest(tmp_path, settings).doubt(tmp_path / "a.mp4", source)
    assert doubt is not None
    said = set(doubt.removeprefix("made with other settings: ").split("; "))
    assert {"tile not set, now 512", "self ensemble off, now on"} < said
    assert "temporal noise fixed, now per-frame" in said


@pytest.mark.parametrize(
    ("setting", "changes"),
    [
        ({"quality": 80}, {"a.jpg", "a.JPEG"}),
        ({"crf": 30}, {"a.mp4", "a.MKV"}),
        ({"temporal_noise": "per-frame"}, {"a.mp4", "a.MKV"}),
        ({"bit_depth": 16}, {"a.png", "a.jpg", "a.JPEG", "a.mp4", "a.MKV"}),
    ],
)
def test_a_setting_concerns_only_the_files_that_it_changes(
    tmp_path: Path, source: Path, setting: dict[str, Any], changes: set[str]
) -> None:
    outputs = [tmp_path / name for name in ("a.png", "a.jpg", "a.JPEG", "a.mp4", "a.MKV")]
    for output in outputs:
        write(output, source)
    later = Manifest(tmp_path, changed(**setting))
    assert {one.name for one in outputs if later.doubt(one, source)} == changes
    # and what is recorded with it is no doubt later
    for output in outputs:
        later.record(output, source, output)
    usual = Manifest(tmp_path, SETTINGS)
    assert {one.name for one in outputs if usual.doubt(one, source)} == changes


def test_inputs_of_one_size_and_time_are_told_apart(tmp_path: Path) -> None:
    first, second, large, other = (tmp_path / f"{name}.bmp" for name in "abcd")
    first.write_text("one image")
    second.write_text("two image")
    for path, middle in ((large, b"x"), (other, b"y")):
        path.write_bytes(bytes(50_000) + 20_000 * middle + bytes(50_000))
    for path in (first, second, large, other):
        os.utime(path, (1e9, 1e9))
    for path, another in ((first, second), (large, other)):
        output = write(tmp_path / "a.png", path)
        known = Manifest(tmp_path, SETTINGS)
        assert known.doubt(output, path) is None
        assert known.doubt(output, another) == OTHER_INPUT


@pytest.mark.parametrize(("size", "known"), [(0, True), (65_536, True), (65_537, False)])
def test_a_copied_input_of_another_time_is_the_same_if_its_digest_covers_it(
    tmp_path: Path, size: int, known: bool
) -> None:
    source, output = tmp_path / "a.bmp", tmp_path / "a.png"
    source.write_bytes(bytes(size))
    write(output, source)
    os.utime(source, (1e9, 1e9))
    assert (Manifest(tmp_path, SETTINGS).doubt(output, source) is None) == known
    source.write_bytes(bytes(max(size - 1, 0)) + b"x")
    assert Manifest(tmp_path, SETTINGS).doubt(output, source) == OTHER_INPUT


@pytest.mark.parametrize("size", [1000, 70_000])
def test_an_output_is_made_from_its_input_as_that_was_then(tmp_path: Path, size: int) -> None:
    """Also a large one, and if either was copied since, which gives it another time."""
    source, output = tmp_path / "a.bmp", tmp_path / "a.png"
    source.write_bytes(bytes(size))
    write(output, source)

    def made(now: Path = source) -> bool:
        return Manifest(tmp_path, SETTINGS).is_made_from(output, now)

    assert made()
    assert not made(tmp_path / "missing.bmp")
    for path in (source, output):
        os.utime(path, (1e9, 1e9))
    assert made()
    source.write_bytes(bytes(size - 1) + b"x")
    assert not made()
    source.write_bytes(bytes(size + 1))
    assert not made()
    source.write_bytes(bytes(size))
    assert made()
    output.write_text("changed")
    assert not made()


def test_a_file_of_another_size_is_another_whatever_its_pieces(
    tmp_path: Path, source: Path
) -> None:
    output = write(tmp_path / "a.png", source, content="0" * 100_000)
    output.write_text("0" * 100_001)
    assert Manifest(tmp_path, SETTINGS).doubt(output, source) == CHANGED


@pytest.mark.parametrize("state", [None, 3, [], [8], [8, 0], "text"])
def test_an_output_without_a_digest_of_its_input_is_made_from_none(
    tmp_path: Path, source: Path, state: object
) -> None:
    output = tmp_path / "a.png"
    output.write_text("restored")
    put_line(output, source=state, written=[8, output.stat().st_mtime_ns])
    known = Manifest(tmp_path, SETTINGS)
    assert known.has(output)
    assert not known.is_made_from(output, source)
    assert known.doubt(output, source) == OTHER_INPUT


def test_records_of_version_0_1_0_are_none(tmp_path: Path, source: Path) -> None:
    """They do not tell which file they are about, nor name the settings."""
    output, state = tmp_path / "a.png", [source.stat().st_size, source.stat().st_mtime_ns]
    output.write_text("restored")
    line = {"output": "a.png", "settings": "8a34cd27c8dde5e0" * 20, "source": state}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(line) + "\n")
    doubt = Manifest(tmp_path, SETTINGS).doubt(output, source)
    assert doubt == "there is no record of how it was made"


@pytest.mark.parametrize("made_with", [{}, {"seed": ["x" * 1000]}, {"x" * 1000: 0}])
def test_unknown_settings_count_as_other_ones(
    made_with: object, tmp_path: Path, source: Path
) -> None:
    output = tmp_path / "a.png"
    output.write_text("restored")
    written = [8, output.stat().st_mtime_ns]
    put_line(output, written=written, made_with=made_with, more="x" * 300)
    doubt = Manifest(tmp_path, SETTINGS).doubt(output, source)
    assert doubt is not None
    assert doubt.startswith("made with other settings")
    assert len(doubt) < 600


def test_without_a_folder_there_is_no_manifest(tmp_path: Path, source: Path) -> None:
    Manifest(None, SETTINGS).record(tmp_path / "a.png", source, source)
    assert not (tmp_path / MANIFEST_NAME).exists()
    assert Manifest(None, SETTINGS).doubt(tmp_path / "a.png", source) is not None


def test_a_manifest_that_cannot_be_written_is_an_error(tmp_path: Path, source: Path) -> None:
    (tmp_path / MANIFEST_NAME).mkdir()
    with pytest.raises(ResourceError, match="cannot write"):
        Manifest(tmp_path, SETTINGS).record(tmp_path / "a.png", source, source)


def test_a_full_disk_costs_no_other_record(tmp_path: Path, source: Path) -> None:
    """A line of which only a part could be written does not swallow the next one."""
    resource = pytest.importorskip("resource")
    made = Manifest(tmp_path, SETTINGS)
    outputs = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for output in outputs:
        output.write_text("restored")
    made.record(outputs[0], source, outputs[0])
    size = (tmp_path / MANIFEST_NAME).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, before[1]))
    try:
        with pytest.raises(ResourceError, match=rf"{MANIFEST_NAME}: cannot write the file"):
            made.record(outputs[1], source, outputs[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / MANIFEST_NAME).stat().st_size == size + 50
    made.record(outputs[2], source, outputs[2])
    known = Manifest(tmp_path, SETTINGS)
    assert [known.has(output) for output in outputs] == [True, False, True]


def test_a_pipe_in_place_of_the_manifest_does_not_block(tmp_path: Path, source: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST_NAME)
    manifest = Manifest(tmp_path, SETTINGS)
    assert not manifest.has(tmp_path / "a.png")
    with pytest.raises(ResourceError, match=MANIFEST_NAME):
        manifest.record(tmp_path / "a.png", source, source)


def test_records_in_a_folder_of_several_users_are_read_together(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them have overwritten each other's files; the content tells whose a file is."""
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for output in (first, second):
        write(output, source, content="by the first user")
    refuse_records(monkeypatch, "write_to", tmp_path / MANIFEST_NAME)
    write(second, source, changed(seed=1), "by the second one")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    for settings, doubts in ((SETTINGS, [False, True]), (changed(seed=1), [True, False])):
        known = Manifest(tmp_path, settings)
        assert [known.doubt(one, source) is not None for one in (first, second)] == doubts
        assert known.has(first)
        assert known.has(second)


def test_nothing_is_written_or_read_through_a_link(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    output, other = tmp_path / "out" / "a.png", tmp_path / "diary.txt"
    write(tmp_path / "a.png", source)
    (tmp_path / MANIFEST_NAME).rename(other)
    before = other.read_bytes()
    (tmp_path / "out" / MANIFEST_NAME).symlink_to(other)
    manifest = Manifest(tmp_path / "out", SETTINGS)
    assert not manifest.was_written(output)
    output.write_text("restored")
    manifest.check_writable()
    manifest.record(output, source, output)
    assert other.read_bytes() == before
    assert Manifest(tmp_path / "out", SETTINGS).has(output)


def test_a_file_is_known_as_soon_as_it_has_its_name(tmp_path: Path, source: Path) -> None:
    """Even if the run was killed just before or after it got its name."""
    output = tmp_path / "a.png"
    temporary = recorded(output, source)
    assert not Manifest(tmp_path, SETTINGS).has(output)
    temporary.rename(output)
    assert Manifest(tmp_path, SETTINGS).doubt(output, source) is None
    other = Manifest(tmp_path, changed(seed=1)).doubt(output, source)
    assert other == "made with other settings: seed 0, now 1"


def test_a_file_that_was_not_replaced_keeps_its_record(tmp_path: Path, source: Path) -> None:
    """The run was killed before it replaced the file, which is that of the previous run."""
    output = write(tmp_path / "a.png", source)
    for _ in range(7):
        recorded(output, source, changed(seed=1), "in another way")
    assert Manifest(tmp_path, SETTINGS).doubt(output, source) is None
    doubt = Manifest(tmp_path, changed(seed=1)).doubt(output, source)
    assert doubt == "made with other settings: seed 0, now 1"
    recorded(output, source, changed(seed=1), "in another way")
    assert Manifest(tmp_path, changed(seed=1)).doubt(output, source) == CHANGED
    write(output, source)
    assert Manifest(tmp_path, SETTINGS).doubt(output, source) is None


def test_an_input_that_changes_after_it_was_read_is_noticed(tmp_path: Path, source: Path) -> None:
    output, manifest = tmp_path / "a.png", Manifest(tmp_path, SETTINGS)
    manifest.look_at(source)
    output.write_text("restored")
    source.write_text("another image")
    manifest.record(output, source, output)
    assert Manifest(tmp_path, SETTINGS).doubt(output, source) == OTHER_INPUT


def test_a_file_of_the_user_stays_unknown(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "a.png"
    output.write_text("somebody's")
    recorded(output, source)
    assert not Manifest(tmp_path, SETTINGS).has(output)
    output.unlink()  # the run was killed, and then the user put another file there
    recorded(output, source)
    output.write_text("else's")
    assert not Manifest(tmp_path, SETTINGS).has(output)


@pytest.mark.parametrize("content", ["", "somebody's", "RESTORED", "restored" * 40_000])
def test_a_file_that_was_changed_later_is_noticed(
    tmp_path: Path, source: Path, content: str
) -> None:
    """A power failure may leave an empty file, and a user may put another one in its place."""
    output = write(tmp_path / "a.png", source)
    assert Manifest(tmp_path, SETTINGS).doubt(output, source) is None
    output.write_text(content)
    os.utime(output, (1e9, 1e9))
    later = Manifest(tmp_path, SETTINGS)
    assert (later.has(output), later.was_written(output)) == (False, True)
    assert later.doubt(output, source) == CHANGED


def test_a_copied_folder_is_recognised_by_its_content(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out" / "a.png"
    output.parent.mkdir()
    write(output, source)
    shutil.copytree(output.parent, tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy" / "a.png", (1e9, 1e9))
    assert Manifest(tmp_path / "copy", SETTINGS).doubt(tmp_path / "copy" / "a.png", source) is None


def test_a_file_of_the_same_time_is_not_read(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = write(tmp_path / "a.png", source)
    later = Manifest(tmp_path, SETTINGS)
    monkeypatch.setattr("c2fdft_cli.engine.restore.manifest._state_of", None)
    assert later.has(output)


@pytest.mark.parametrize("written", [[], [1], [8], [8, 0], [8, 0, "x"], [None], ["text", [], {}]])
def test_a_line_that_does_not_identify_its_file_counts_as_about_another(
    tmp_path: Path, source: Path, written: object
) -> None:
    output = tmp_path / "a.png"
    output.write_text("restored")
    put_line(output, written=written)
    assert Manifest(tmp_path, SETTINGS).doubt(output, source) == CHANGED


def test_a_manifest_that_the_system_does_not_read_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    (tmp_path / MANIFEST_NAME).write_text("")
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(DataError, match=f"cannot read: {os.strerror(errno.EIO)}"):
        Manifest(tmp_path, SETTINGS)


def test_too_many_records_are_reported(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were ignored without a word, and every file counted as one without a record."""
    for number in range(20):
        write(tmp_path / f"{number}.png", source)
    assert not Manifest(tmp_path, SETTINGS).unread
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", 2000)
    known = Manifest(tmp_path, SETTINGS)
    (warning,) = _unread(known)
    assert re.search(
        rf"{MANIFEST_NAME} cannot be read \(its [\d,]+ bytes are over 2,000\)", warning
    )
    assert not known.has(tmp_path / "1.png")


def test_a_hostile_file_takes_little_memory(tmp_path: Path, source: Path) -> None:
    """Short lines would take many times their size when they are kept, long ones when parsed."""
    output = write(tmp_path / "a.png", source)
    path = tmp_path / MANIFEST_NAME
    short = "".join(f'{{"output": "{n}", "written": [], "made_with": {{}}}}\n' for n in range(9999))
    long = f'{{"output": "b.png", "written": [], "made_with": {{}}, "x": [{"{}," * 3_000_000}0]}}\n'
    path.write_text(short + long + path.read_text() + "[" * 3_000_000)
    tracemalloc.start()
    known = Manifest(tmp_path, SETTINGS)
    assert known.doubt(output, source) is None
    assert [known.was_written(tmp_path / name) for name in ("1", "b.png")] == [False, False]
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


def test_a_folder_whose_path_is_too_long_has_no_records(tmp_path: Path) -> None:
    assert not Manifest(tmp_path / ("a" * 300), {}).has_records
