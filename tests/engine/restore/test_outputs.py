"""Names of outputs: they mirror the inputs, are unique, and never replace an input."""

from __future__ import annotations

import errno
import unicodedata
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from c2fdft_cli.data.video.probe import VideoInfo
from c2fdft_cli.engine.restore.inputs import Inputs, Source, find_inputs
from c2fdft_cli.engine.restore.options import Writing
from c2fdft_cli.engine.restore.outputs import (
    Item,
    is_about_one_file,
    output_folder,
    plan_outputs,
    with_usable_names,
)
from c2fdft_cli.errors import DataError, ResourceError, UsageError
from tests.kit.restore import found_under, random_picture, save


def outputs(source: Path | str, out: Path | str, **changes: Any) -> list[Item]:
    return with_notes(source, out, **changes)[0]


def with_notes(source: Path | str, out: Path | str, **changes: Any) -> tuple[list[Item], list[str]]:
    return plan_outputs(find_inputs([str(source)]), str(out), Writing(**changes))


def made(folder: Path, *names: str) -> Path:
    for name in names:
        save(folder / name, random_picture(2, 2))
    return folder


def named(items: list[Item], out: Path) -> list[str]:
    return [item.output.relative_to(out).as_posix() for item in items if item.output]


def test_sub_folders_are_mirrored_as_png(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "a.jpg", "x/a.png", "x/y.z.bmp")
    out = tmp_path / "out"
    assert named(outputs(source, out), out) == ["a.png", "x/a.png", "x/y.z.png"]
    assert named(outputs(source, out, suffix="_r", format="tiff"), out) == [
        "a_r.tif",
        "x/a_r.tif",
        "x/y.z_r.tif",
    ]
    assert named(outputs(source, out, format="same"), out) == ["a.jpg", "x/a.png", "x/y.z.bmp"]


def test_colliding_names_are_extended_and_noted(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "a.jpg", "a.png", "b.png")
    out = tmp_path / "out"
    items, notes = with_notes(source, out)
    assert named(items, out) == ["a.jpg.png", "a.png.png", "b.png"]
    assert len(notes) == 2
    assert "a.jpg.png" in notes[0]


def test_names_that_differ_in_case_collide(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "a.png", "A.bmp")
    result = outputs(source, tmp_path / "out")
    assert sorted(named(result, tmp_path / "out")) == ["A.bmp.png", "a.png.png"]


def test_extended_names_that_collide_are_numbered(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "a.jpg", "a.png", "a.jpg.bmp", "a.jpg-2.bmp")
    result = outputs(source, tmp_path / "out")
    names = {item.source.path.name: item.output.name for item in result if item.output}
    assert names == {
        "a.jpg": "a.jpg-3.png",
        "a.png": "a.png.png",
        "a.jpg.bmp": "a.jpg.png",
        "a.jpg-2.bmp": "a.jpg-2.png",
    }


def test_names_that_differ_only_in_case_become_distinct(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "IMG_1.jpg", "IMG_1.JPG", "x/img_1.jpg", "other.png")
    if len(list(source.iterdir())) < 4:
        pytest.skip("this file system does not tell cases apart")
    out = tmp_path / "out"
    items, notes = with_notes(source, out)
    names = named(items, out)
    assert sorted(names) == ["IMG_1.JPG.png", "IMG_1.jpg-2.png", "other.png", "x/img_1.png"]
    assert len(notes) == 2
    assert all("IMG_1" in note for note in notes)


def test_names_that_differ_in_how_accents_are_composed_become_distinct(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "caf\u00e9.png", "cafe\u0301.png")
    if len(list(source.iterdir())) < 2:
        pytest.skip("this file system does not tell them apart")
    names = named(outputs(source, tmp_path / "out"), tmp_path / "out")
    assert len({unicodedata.normalize("NFC", name) for name in names}) == 2


def test_extra_pictures_and_outputs_have_distinct_names(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "a.png", "a.compare.png")
    out = tmp_path / "out"
    result = outputs(source, out, compare=out)
    files = [path for item in result for path in item.files]
    assert len(files) == len(set(files)) == 4


def test_no_output_has_the_name_of_a_folder_of_outputs(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "a.jpg", "A.png/x/b.jpg", "x.jpg", "a.jpg.png/c.jpg")
    out = tmp_path / "out"
    items, notes = with_notes(source, out)
    assert sorted(named(items, out)) == ["A.png/x/b.png", "a.jpg-2.png", "a.jpg.png/c.png", "x.png"]
    assert notes == [f"{source / 'a.jpg'} -> {out / 'a.jpg-2.png'}: another input claims a.png"]


def test_a_folder_in_place_of_an_output_is_a_problem_of_one_input(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "a.jpg", "b.jpg")
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    first, second = outputs(source, tmp_path / "out")
    assert not first.is_complete
    assert second == with_usable_names(second)
    problem = with_usable_names(first).source.problem
    assert str(problem).startswith(f"{source / 'a.jpg'}: a folder has the output's name")


def test_an_unreadable_input_keeps_its_problem(tmp_path: Path) -> None:
    (item,) = outputs(made(tmp_path / "in", "a.jpg"), tmp_path / "out")
    broken = replace(item, source=replace(item.source, problem=DataError("damaged")))
    assert with_usable_names(broken) == broken


@pytest.mark.parametrize(("format", "suffix"), [(None, ".png"), ("jpeg", ".jpg"), ("same", ".bmp")])
def test_standard_output_has_the_requested_format(
    tmp_path: Path, format: str | None, suffix: str
) -> None:
    """Additional pictures are named after the input; a suffix of names changes nothing."""
    source = made(tmp_path, "a.bmp") / "a.bmp"
    options = {"compare": tmp_path / "c", "uncertainty": tmp_path / "u", "suffix": "_r"}
    (item,) = outputs(source, "-", format=format, **options)
    assert (item.output, item.suffix) == (None, suffix)
    names = ("c/a.compare.png", "u/a.spread.png", "u/a.heat.png")
    assert item.files == [tmp_path / name for name in names]


def test_a_named_output_file_decides_the_format(tmp_path: Path) -> None:
    source = made(tmp_path, "a.jpg") / "a.jpg"
    out = tmp_path / "b.tif"
    assert output_folder(str(out)) is None
    assert outputs(source, out)[0].output == out
    with pytest.raises(UsageError, match=r"--format png does not fit .*b\.tif"):
        outputs(source, out, format="png")
    assert outputs(source, out, format="tiff")[0].output == out


def test_a_suffix_for_a_named_output_file_is_refused(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "a.jpg") / "a.jpg"
    with pytest.raises(
        UsageError, match=r"--suffix cannot be combined with the output file .*b\.png"
    ):
        outputs(source, tmp_path / "b.png", suffix="_r")
    film = VideoInfo(Path("a.mp4"), 16, 16, Fraction(25))
    video = Inputs([Source(Path("a.mp4"), Path("a.mp4"), video=film)], single=True)
    with pytest.raises(
        UsageError, match=r"--suffix cannot be combined with the output file b\.mp4"
    ):
        plan_outputs(video, "b.mp4", Writing(suffix="_r"))


@pytest.mark.parametrize(
    ("codec", "advice"), [("aac", "use .mkv"), ("pcm_bluray", "convert the sound first")]
)
def test_a_container_that_holds_the_sound_is_named(codec: str, advice: str, tmp_path: Path) -> None:
    pytest.importorskip("av")
    from c2fdft_cli.data.video.probe import probe_video
    from tests.kit.video import make_clip

    film = probe_video(make_clip(tmp_path / "a.m2ts", rate="25", sound_codec=codec))
    video = Inputs([Source(film.path, Path("a.m2ts"), video=film)], single=True)
    with pytest.raises(UsageError, match="cannot hold this video's sound") as caught:
        plan_outputs(video, "b.webm", Writing())
    assert caught.value.hint == f"sound is copied as it is; {advice}"


def test_one_file_for_many_images_is_refused(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "a.jpg", "b.jpg")
    with pytest.raises(UsageError, match="OUT must be a folder for 2 images"):
        outputs(source, tmp_path / "b.png")


@pytest.mark.parametrize("option", ["compare", "uncertainty"])
def test_a_file_in_place_of_a_folder_of_pictures_is_refused(tmp_path: Path, option: str) -> None:
    """A folder with the suffix of a picture would look like a damaged picture."""
    source = made(tmp_path / "in", "a.jpg")
    with pytest.raises(UsageError, match=rf"--{option} must be a folder, got the file .*b\.png"):
        outputs(source, tmp_path / "out", **{option: tmp_path / "b.png"})
    (tmp_path / "b.png").mkdir()
    assert outputs(source, tmp_path / "out", **{option: tmp_path / "b.png"})


def test_an_existing_folder_with_an_image_suffix_is_a_folder(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "a.jpg")
    (tmp_path / "out.png").mkdir()
    assert outputs(source, tmp_path / "out.png")[0].output == tmp_path / "out.png" / "a.png"


def test_a_format_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    source = made(tmp_path, "a.jpg") / "a.jpg"
    for suffix in (".gif", ".cr2", ".pdf", ".y4m"):
        with pytest.raises(UsageError, match=rf"cannot write images as '\{suffix}'"):
            outputs(source, tmp_path / f"b{suffix}")


def test_inputs_are_never_replaced(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "a.png")
    with pytest.raises(UsageError, match="would replace an input"):
        outputs(source / "a.png", source / "a.png")
    with pytest.raises(UsageError, match="would replace an input"):
        outputs(source / "a.png", source)
    assert outputs(source / "a.png", source, suffix="_r")[0].output == source / "a_r.png"


@pytest.mark.skipif(Path("..png").suffix == "", reason="Python 3.14 sees no suffix in it")
def test_a_name_of_dots_and_a_suffix_is_kept(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "..png")
    (item,) = outputs(source / "..png", tmp_path / "out", compare=tmp_path / "seen")
    assert item.output == tmp_path / "out" / "..png"
    assert item.compare == tmp_path / "seen" / "..compare.png"
    assert named(outputs(source / "..png", tmp_path, suffix="_r"), tmp_path) == ["._r.png"]


@pytest.mark.parametrize("same_inode", [True, False])
def test_inputs_are_never_replaced_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_inode: bool
) -> None:
    source = made(tmp_path / "in", "a.png")
    other = found_under(monkeypatch, source, tmp_path / "IN", same_inode=same_inode)
    with pytest.raises(UsageError, match="would replace an input"):
        outputs(source / "a.png", other)


def test_16_bits_need_a_format_that_has_them(tmp_path: Path) -> None:
    source = made(tmp_path, "a.png") / "a.png"
    for changes in ({"out": "b.jpg"}, {"out": "out", "format": "webp"}):
        out = tmp_path / changes.pop("out")
        with pytest.raises(UsageError, match="holds 8 bits"):
            outputs(source, out, bit_depth=16, **changes)
    assert outputs(source, tmp_path / "b.tif", bit_depth=16)


def test_extras_are_mirrored_and_count_for_completeness(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "x/a.jpg", "b.jpg")
    compare, uncertainty = tmp_path / "c", tmp_path / "u"
    result = outputs(source, tmp_path / "out", compare=compare, uncertainty=uncertainty)
    item = result[1]
    assert item.compare == compare / "x" / "a.compare.png"
    assert item.deviation == uncertainty / "x" / "a.spread.png"
    assert item.heat == uncertainty / "x" / "a.heat.png"
    assert item.files[-1] == item.output
    for path in item.files:
        assert not item.is_complete
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert item.is_complete


def test_the_same_format_of_a_jpeg_by_another_name_is_jpeg(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "a.jpg", "b.png")
    (source / "a.jpg").rename(source / "a.jfif")
    out = tmp_path / "out"
    assert named(outputs(source, out, format="same"), out) == ["a.jpg", "b.png"]


@pytest.mark.parametrize("changes", [{}, {"suffix": "_r"}, {"compare": Path("c")}])
def test_names_that_become_too_long_are_reported_before_work(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    long = "a" * 251
    source = made(tmp_path / "in", "b.png", f"{long}.png")
    if not changes:  # both images claim one name, which is therefore extended
        made(source, f"{long}.jpg")
    items = [with_usable_names(one) for one in outputs(source, tmp_path / "out", **changes)]
    good = [item.source.problem is None for item in items]
    assert good.count(True) == 1
    bad = next(item.source.problem for item in items if item.source.problem)
    assert "file systems allow 255" in str(bad)
    assert str(bad).startswith(str(source / long))


def test_a_name_may_have_255_bytes(tmp_path: Path) -> None:
    source = made(tmp_path / "in", f"{'a' * 251}.bmp", f"{'b' * 250}.png")
    items = [with_usable_names(one) for one in outputs(source, tmp_path / "out")]
    assert [item.source.problem for item in items] == [None, None]


@pytest.mark.parametrize(
    ("code", "one"),
    [(errno.EACCES, True), (errno.ENAMETOOLONG, True), (errno.EIO, True), (errno.ESTALE, True),
     (errno.ELOOP, True), (errno.EMFILE, True), (errno.ENOSPC, False), (errno.EDQUOT, False),
     (errno.EROFS, False)],
)  # fmt: skip
def test_a_full_disk_affects_all_files_and_other_errors_one(code: int, one: bool) -> None:
    error = ResourceError("cannot write")
    error.__cause__ = OSError(code, "refused")
    assert is_about_one_file(error) is one
    assert not is_about_one_file(ResourceError("out of memory"))
