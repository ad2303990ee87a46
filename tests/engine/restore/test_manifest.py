"""The manifest of how each file was made: stable digests, named differences, damaged lines."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from c2fdft_cli.engine.restore import manifest
from c2fdft_cli.engine.restore.manifest import MANIFEST_NAME, Manifest, settings_digest
from c2fdft_cli.engine.restore.plan import _unread
from c2fdft_cli.errors import DataError, ResourceError
from tests.kit.restore import refuse_records

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


def begun(output: Path, source: Path, settings: Any = SETTINGS, content: str = "restored") -> Path:
    """Begin to write an output; return the temporary file, which has not got its name yet."""
    temporary = output.with_name(".new")
    temporary.write_text(content)
    Manifest(output.parent, settings).begin(output, source, temporary)
    return temporary


def changed(**settings: Any) -> dict[str, Any]:
    return {**SETTINGS, **settings}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.jpg"
    path.write_text("an image")
    return path


def test_the_digest_is_that_of_earlier_versions() -> None:
    """Outputs of earlier versions are recognised by these digests."""
    weights = "w" * 64
    assert settings_digest(changed(weights=weights)) == "8a34cd27c8dde5e0"
    assert settings_digest(changed(weights=weights, quality=80)) == "31fc20b6972490b9"
    many = changed(
        weights=weights, seed=3, eta=0.5, tile=64, draws=2, bit_depth=8, self_ensemble=True
    )
    video = {"temporal_noise": "per-frame", "crf": 30}
    assert settings_digest({**many, **video}) == "e63888701f902ca8"


def test_every_setting_changes_the_digest() -> None:
    values = [
        {"weights": "v"}, {"grid": [999]}, {"precision": "bf16"}, {"draws": 2}, {"eta": 1.0},
        {"seed": 1}, {"quality": 9}, {"bit_depth": 8}, {"tile": 64}, {"self_ensemble": True},
        {"temporal_noise": "per-frame"}, {"crf": 0},
    ]  # fmt: skip
    digests = {settings_digest(changed(**value)) for value in values}
    assert len(digests | {settings_digest(SETTINGS)}) == 13


def test_a_file_made_with_the_same_settings_is_up_to_date(tmp_path: Path, source: Path) -> None:
    Manifest(tmp_path, SETTINGS).add(tmp_path / "x" / "a.png", source)
    assert Manifest(tmp_path, SETTINGS).doubt(tmp_path / "x" / "a.png", source) is None
    unknown = Manifest(tmp_path, SETTINGS).doubt(tmp_path / "b.png", source)
    assert unknown == "there is no record of how it was made"
    source.write_text("another image")
    stale = Manifest(tmp_path, SETTINGS).doubt(tmp_path / "x" / "a.png", source)
    assert stale == OTHER_INPUT


def test_differences_are_named(tmp_path: Path, source: Path) -> None:
    Manifest(tmp_path, SETTINGS, "w.pt").add(tmp_path / "a.png", source)
    settings = changed(weights="v" * 64, grid=[500], draws=8, seed=3)
    doubt = Manifest(tmp_path, settings, "v.pt").doubt(tmp_path / "a.png", source)
    assert doubt == (
        "made with other settings: weights w.pt 01234567, now v.pt vvvvvvvv; "
        "timesteps 999,500, now 500; samples 1, now 8; seed 0, now 3"
    )


def test_differences_are_named_in_words(tmp_path: Path, source: Path) -> None:
    Manifest(tmp_path, changed(tile=None, self_ensemble=False)).add(tmp_path / "a.mp4", source)
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
        Manifest(tmp_path, SETTINGS).add(output, source)
    later = Manifest(tmp_path, changed(**setting))
    assert {one.name for one in outputs if later.doubt(one, source)} == changes
    # and what is recorded with it is no doubt later
    for output in outputs:
        later.add(output, source)
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
        Manifest(tmp_path, SETTINGS).add(tmp_path / "a.png", path)
        manifest = Manifest(tmp_path, SETTINGS)
        assert manifest.doubt(tmp_path / "a.png", path) is None
        assert manifest.doubt(tmp_path / "a.png", another) == OTHER_INPUT


@pytest.mark.parametrize(("size", "known"), [(0, True), (65_536, True), (65_537, False)])
def test_a_copied_input_of_another_time_is_the_same_if_its_digest_covers_it(
    tmp_path: Path, size: int, known: bool
) -> None:
    source, output = tmp_path / "a.bmp", tmp_path / "a.png"
    source.write_bytes(bytes(size))
    Manifest(tmp_path, SETTINGS).add(output, source)
    os.utime(source, (1e9, 1e9))
    assert (Manifest(tmp_path, SETTINGS).doubt(output, source) is None) == known
    source.write_bytes(bytes(max(size - 1, 0)) + b"x")
    assert Manifest(tmp_path, SETTINGS).doubt(output, source) == OTHER_INPUT


@pytest.mark.parametrize("size", [1000, 70_000])
def test_an_output_is_made_from_its_input_as_that_was_then(tmp_path: Path, size: int) -> None:
    """Also a large one, and if either was copied since, which gives it another time."""
    source, output = tmp_path / "a.bmp", tmp_path / "a.png"
    source.write_bytes(bytes(size))
    output.write_text("restored")
    Manifest(tmp_path, SETTINGS).add(output, source)

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


@pytest.mark.parametrize("state", [None, 3, [], [8], [8, 0], "text"])
def test_an_output_without_a_digest_of_its_input_is_made_from_none(
    tmp_path: Path, source: Path, state: object
) -> None:
    line = {"output": "a.png", "settings": "0", "source": state}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(line) + "\n")
    assert not Manifest(tmp_path, SETTINGS).is_made_from(tmp_path / "a.png", source)


@pytest.mark.parametrize(
    ("change", "known"), [(0, True), (1, False)], ids=["same time", "other time"]
)
def test_records_of_earlier_versions_identify_an_input_by_size_and_time(
    tmp_path: Path, source: Path, change: int, known: bool
) -> None:
    status = source.stat()
    state = [status.st_size, status.st_mtime_ns + change]
    line = {"output": "a.png", "settings": settings_digest(SETTINGS), "source": state}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(line) + "\n")
    assert (Manifest(tmp_path, SETTINGS).doubt(tmp_path / "a.png", source) is None) == known


@pytest.mark.parametrize("made_with", [None, 3, {}, {"seed": ["x" * 1000]}])
def test_a_line_without_valid_settings_counts_as_other_settings(
    made_with: object, tmp_path: Path, source: Path
) -> None:
    """Such lines are from earlier versions, or were edited."""
    line = {"output": "a.png", "settings": "0", "source": None, "made_with": made_with}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(line) + "\n")
    doubt = Manifest(tmp_path, SETTINGS).doubt(tmp_path / "a.png", source)
    assert doubt is not None
    assert doubt.startswith("made with other settings")
    assert len(doubt) < 600


def test_without_a_folder_there_is_no_manifest(tmp_path: Path, source: Path) -> None:
    Manifest(None, SETTINGS).add(tmp_path / "a.png", source)
    assert not (tmp_path / MANIFEST_NAME).exists()
    assert Manifest(None, SETTINGS).doubt(tmp_path / "a.png", source) is not None


def test_a_manifest_that_cannot_be_written_is_an_error(tmp_path: Path, source: Path) -> None:
    (tmp_path / MANIFEST_NAME).mkdir()
    with pytest.raises(ResourceError, match="cannot write"):
        Manifest(tmp_path, SETTINGS).add(tmp_path / "a.png", source)


def test_a_full_disk_costs_no_other_record(tmp_path: Path, source: Path) -> None:
    """A line of which only a part could be written does not swallow the next one."""
    resource = pytest.importorskip("resource")
    made = Manifest(tmp_path, SETTINGS)
    made.add(tmp_path / "a.png", source)
    size = (tmp_path / MANIFEST_NAME).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, before[1]))
    try:
        with pytest.raises(ResourceError, match=rf"{MANIFEST_NAME}: cannot write the file"):
            made.add(tmp_path / "b.png", source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / MANIFEST_NAME).stat().st_size == size + 50
    made.add(tmp_path / "c.png", source)
    known = Manifest(tmp_path, SETTINGS)
    assert [known.has(tmp_path / name) for name in ("a.png", "b.png", "c.png")] == [
        True,
        False,
        True,
    ]


def test_a_pipe_in_place_of_the_manifest_does_not_block(tmp_path: Path, source: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST_NAME)
    manifest = Manifest(tmp_path, SETTINGS)
    assert not manifest.has(tmp_path / "a.png")
    with pytest.raises(ResourceError, match=MANIFEST_NAME):
        manifest.begin(tmp_path / "a.png", source, source)


def test_records_in_a_folder_of_several_users_are_read_together(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them have overwritten each other's files; the content tells whose a file is."""
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for output in (first, second):
        output.write_text("by the first user")
        Manifest(tmp_path, SETTINGS).add(output, source)
    refuse_records(monkeypatch, "write_to", tmp_path / MANIFEST_NAME)
    second.write_text("by the second one")
    Manifest(tmp_path, changed(seed=1)).add(second, source)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    for settings, doubts in ((SETTINGS, [False, True]), (changed(seed=1), [True, False])):
        known = Manifest(tmp_path, settings)
        assert [known.doubt(one, source) is not None for one in (first, second)] == doubts
        assert known.has(first)
        assert known.has(second)


def test_nothing_is_written_or_read_through_a_link(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    output, other = tmp_path / "out" / "a.png", tmp_path / "diary.txt"
    Manifest(tmp_path, SETTINGS).add(tmp_path / "a.png", source)
    (tmp_path / MANIFEST_NAME).rename(other)
    before = other.read_bytes()
    (tmp_path / "out" / MANIFEST_NAME).symlink_to(other)
    manifest = Manifest(tmp_path / "out", SETTINGS)
    assert not manifest.was_written(output)
    output.write_text("restored")
    manifest.check_writable()
    manifest.add(output, source)
    assert other.read_bytes() == before
    assert Manifest(tmp_path / "out", SETTINGS).has(output)


def test_a_file_that_was_begun_and_exists_is_known(tmp_path: Path, source: Path) -> None:
    """The run was killed after the file was complete, but before it was recorded."""
    output = tmp_path / "a.png"
    temporary = begun(output, source)
    assert not Manifest(tmp_path, SETTINGS).has(output)
    temporary.rename(output)
    assert Manifest(tmp_path, SETTINGS).doubt(output, source) is None
    other = Manifest(tmp_path, changed(seed=1)).doubt(output, source)
    assert other == "made with other settings"


def test_a_file_that_was_not_replaced_keeps_its_record(tmp_path: Path, source: Path) -> None:
    """The run was killed before it replaced the file, which is that of the previous run."""
    output = tmp_path / "a.png"
    output.write_text("restored")
    Manifest(tmp_path, SETTINGS).add(output, source)
    begun(output, source, changed(seed=1), "in another way")
    assert Manifest(tmp_path, SETTINGS).doubt(output, source) is None
    doubt = Manifest(tmp_path, changed(seed=1)).doubt(output, source)
    assert doubt == "made with other settings: seed 0, now 1"
    for _ in range(20):
        begun(output, source, changed(seed=1), "in another way")
    assert Manifest(tmp_path, changed(seed=1)).doubt(output, source) is not None
    Manifest(tmp_path, SETTINGS).add(output, source)
    assert Manifest(tmp_path, SETTINGS).doubt(output, source) is None


def test_an_input_that_changes_after_it_was_read_is_noticed(tmp_path: Path, source: Path) -> None:
    output, manifest = tmp_path / "a.png", Manifest(tmp_path, SETTINGS)
    manifest.look_at(source)
    output.write_text("restored")
    source.write_text("another image")
    manifest.add(output, source)
    assert Manifest(tmp_path, SETTINGS).doubt(output, source) == OTHER_INPUT


def test_a_file_of_the_user_stays_unknown(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "a.png"
    output.write_text("somebody's")
    begun(output, source)
    assert not Manifest(tmp_path, SETTINGS).has(output)
    output.unlink()  # the run was killed, and then the user put another file there
    begun(output, source)
    output.write_text("else's")
    assert not Manifest(tmp_path, SETTINGS).has(output)


CHANGED = "the file was changed after this program wrote it"


@pytest.mark.parametrize("content", ["", "somebody's", "RESTORED", "restored" * 40_000])
@pytest.mark.parametrize("begins", [True, False])
def test_a_file_that_was_changed_later_is_noticed(
    tmp_path: Path, source: Path, content: str, begins: bool
) -> None:
    """A power failure may leave an empty file, and a user may put another one in its place."""
    output, manifest = tmp_path / "a.png", Manifest(tmp_path, SETTINGS)
    output.write_text("restored")
    if begins:
        manifest.begin(output, source, output)
    manifest.add(output, source)
    assert Manifest(tmp_path, SETTINGS).doubt(output, source) is None
    output.write_text(content)
    os.utime(output, (1e9, 1e9))
    later = Manifest(tmp_path, SETTINGS)
    assert (later.has(output), later.was_written(output)) == (False, True)
    assert later.doubt(output, source) == CHANGED


def test_a_copied_folder_is_recognised_by_its_content(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out" / "a.png"
    output.parent.mkdir()
    output.write_text("restored")
    Manifest(output.parent, SETTINGS).add(output, source)
    shutil.copytree(output.parent, tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy" / "a.png", (1e9, 1e9))
    assert Manifest(tmp_path / "copy", SETTINGS).doubt(tmp_path / "copy" / "a.png", source) is None


def test_a_file_of_the_same_time_is_not_read(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a.png"
    output.write_text("restored")
    Manifest(tmp_path, SETTINGS).add(output, source)
    later = Manifest(tmp_path, SETTINGS)
    monkeypatch.setattr("c2fdft_cli.engine.restore.manifest._state_of", None)
    assert later.has(output)


def test_a_file_that_another_run_replaced_is_not_recorded_as_ones_own(
    tmp_path: Path, source: Path
) -> None:
    output, mine = tmp_path / "a.png", Manifest(tmp_path, SETTINGS)
    output.write_text("restored")
    mine.begin(output, source, output)
    begun(output, source, changed(seed=1), "in another way").replace(output)
    mine.add(output, source)
    assert not Manifest(tmp_path, SETTINGS).has(output)


def test_records_of_earlier_versions_say_nothing_of_the_file(tmp_path: Path, source: Path) -> None:
    Manifest(tmp_path, SETTINGS).add(tmp_path / "a.png", source)
    line = json.loads((tmp_path / MANIFEST_NAME).read_text())
    del line["written"]
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(line) + "\n")
    for content in ("restored", "in another way"):
        (tmp_path / "a.png").write_text(content)
        assert Manifest(tmp_path, SETTINGS).doubt(tmp_path / "a.png", source) is None


@pytest.mark.parametrize("written", [3, "text", [], [1], [8, 0, "x"], {"size": 8}])
def test_a_line_that_does_not_identify_its_file_counts_as_about_another(
    tmp_path: Path, source: Path, written: object
) -> None:
    output = tmp_path / "a.png"
    output.write_text("restored")
    line = {"output": "a.png", "settings": "0", "source": None, "written": written}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(line) + "\n")
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


@pytest.mark.parametrize(
    ("limit", "reason"),
    [("MAX_MANIFEST_BYTES", r"its [\d,]+ bytes are over 2,000"),
     ("MAX_KEPT_BYTES", r"its [\d,]+ bytes hold records of too many files")],
)  # fmt: skip
def test_too_many_records_are_reported(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, limit: str, reason: str
) -> None:
    """They were ignored without a word, and every file counted as one without a record."""
    for number in range(20):
        Manifest(tmp_path, SETTINGS).add(tmp_path / f"{number}.png", source)
    assert not Manifest(tmp_path, SETTINGS).unread
    monkeypatch.setattr(manifest, limit, 2000)
    known = Manifest(tmp_path, SETTINGS)
    (warning,) = _unread(known)
    assert re.search(rf"{MANIFEST_NAME} cannot be read \({reason}\)", warning)
    assert not known.has(tmp_path / "1.png")


def test_records_that_newer_ones_replace_take_no_memory(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "MAX_KEPT_BYTES", 2000)
    for _ in range(20):
        Manifest(tmp_path, SETTINGS).add(tmp_path / "a.png", source)
    assert Manifest(tmp_path, SETTINGS).doubt(tmp_path / "a.png", source) is None


@pytest.mark.parametrize("length", [1 << 20, (1 << 20) + 1, 3 << 20])
def test_endless_lines_are_skipped(tmp_path: Path, source: Path, length: int) -> None:
    Manifest(tmp_path, SETTINGS).add(tmp_path / "a.png", source)
    path = tmp_path / MANIFEST_NAME
    good = path.read_bytes()
    long = good.replace(b"a.png", b"b.png").rstrip() + b" " * length
    path.write_bytes(b"[" * length + b"\n" + good + long)
    known = Manifest(tmp_path, SETTINGS)
    outputs = (tmp_path / "a.png", tmp_path / "b.png")
    assert [known.was_written(output) for output in outputs] == [True, False]
