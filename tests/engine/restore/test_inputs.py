"""What the inputs on a command line mean: file, folder, glob, list, standard input."""

from __future__ import annotations

import errno
import ntpath
import os
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.engine.restore.inputs import Inputs, find_inputs
from c2fdft_cli.errors import DataError, UsageError
from tests.kit.restore import found_under, random_picture, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("10.png", "2.png", "sub/3.jpg", ".hidden/4.png"):
        save(tmp_path / "in" / name, random_picture(4, 5))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def names(inputs: Inputs) -> list[str]:
    return [source.relative.as_posix() for source in inputs.sources]


def test_a_folder_is_read_with_sub_folders_in_natural_order(folder: Path) -> None:
    inputs = find_inputs([str(folder)])
    assert names(inputs) == ["2.png", "10.png", "sub/3.jpg"]
    assert not inputs.single
    assert (inputs.sources[0].height, inputs.sources[0].width) == (4, 5)


def test_the_files_that_were_looked_at_are_counted(folder: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    find_inputs([str(folder)], looked=lambda *count: seen.append(count))
    phases = {"recognising files": 4, "reading headers": 3}  # one of the files is no picture
    assert seen == [(what, k, count) for what, count in phases.items() for k in range(count)]


def test_outputs_inside_the_input_folder_are_not_inputs(folder: Path) -> None:
    save(folder / "out" / "2.png", random_picture(4, 5))
    found = names(find_inputs([str(folder)], skip=folder / "out"))
    assert found == ["2.png", "10.png", "sub/3.jpg"]


@pytest.mark.parametrize("same_inode", [True, False])
def test_outputs_inside_the_input_folder_are_found_by_another_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, same_inode: bool
) -> None:
    save(folder / "out" / "sub" / "2.png", random_picture(4, 5))
    other = found_under(monkeypatch, folder / "out", folder / "OUT", same_inode=same_inode)
    found = names(find_inputs([str(folder)], skip=other))
    assert found == ["2.png", "10.png", "sub/3.jpg"]


def test_a_link_to_an_output_is_not_an_input(folder: Path) -> None:
    save(folder / "out" / "1.png", random_picture(4, 5))
    (folder / "link.png").symlink_to(folder / "out" / "1.png")
    assert "link.png" not in names(find_inputs([str(folder)], skip=folder / "out"))


def test_each_file_is_opened_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For its kind and for its header: on a network disk, most of the time is spent on opening."""
    opened: list[str] = []
    usual = Path.open

    def counted(path: Path, *arguments: Any, **more: Any) -> Any:
        opened.append(path.name)
        return usual(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", counted)
    find_inputs([str(folder)])
    assert sorted(opened) == [*["10.png"] * 2, *["2.png"] * 2, *["3.jpg"] * 2, "notes.txt"]


def test_a_file_is_one_input(folder: Path) -> None:
    inputs = find_inputs([str(folder / "sub" / "3.jpg")])
    assert inputs.single
    assert names(inputs) == ["3.jpg"]


def test_a_glob_is_mirrored_below_the_common_folder(folder: Path) -> None:
    assert names(find_inputs([f"{folder}/**/*.*g"])) == ["2.png", "10.png", "sub/3.jpg"]
    assert names(find_inputs([f"{folder}/*.png"])) == ["2.png", "10.png"]


def test_copies_that_systems_keep_are_inputs_only_if_named(folder: Path) -> None:
    save(folder / "sub" / "@eaDir" / "3.jpg" / "SYNOFILE_THUMB_M.jpg", random_picture(4, 5))
    assert names(find_inputs([str(folder)])) == ["2.png", "10.png", "sub/3.jpg"]
    assert names(find_inputs([f"{folder}/**/*.*g"])) == ["2.png", "10.png", "sub/3.jpg"]
    for named in (f"{folder}/sub/@eaDir/*/*.jpg", f"{folder}/sub/@eaDir"):
        assert names(find_inputs([named]))[0].endswith("SYNOFILE_THUMB_M.jpg")


def test_names_with_a_dot_that_a_glob_asks_for_are_inputs(folder: Path) -> None:
    save(folder / ".dots" / ".a.png", random_picture(4, 5))
    assert names(find_inputs([f"{folder}/.d*/.*.png"])) == [".a.png"]


def test_a_glob_through_a_link_to_a_parent_folder_gives_each_file_once(folder: Path) -> None:
    (folder / "sub" / "up").symlink_to(folder)
    assert names(find_inputs([f"{folder}/**/*.*g"])) == ["2.png", "10.png", "sub/3.jpg"]


@pytest.mark.parametrize("pattern", ["**", "**/**", "sub/../**/*.*g", "*/../**/*g"])
def test_a_recursive_glob_ends_where_two_links_lead_to_their_own_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    for link in ("again", "once-more"):
        (folder / "sub" / link).symlink_to(folder)
    (folder / "notes.txt").write_text("not an image")
    monkeypatch.chdir(folder)
    assert names(find_inputs([pattern])) == ["2.png", "10.png", "sub/3.jpg"]


@pytest.mark.parametrize("spec", [".", "**"])
def test_a_file_is_named_by_its_path_without_links_if_it_has_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    """Outputs mirror the paths, which must not depend on the order in which folders are listed."""
    for own, other in (("a", "b"), ("b", "a")):
        save(folder / own / own / "4.png", random_picture(4, 5))
        (folder / own / "link").symlink_to(folder / other / other)
    monkeypatch.chdir(folder)
    assert names(find_inputs([spec])) == [
        *("2.png", "10.png", "a/a/4.png", "b/b/4.png", "sub/3.jpg")
    ]


def test_a_file_whose_name_looks_like_a_glob_is_taken_literally(tmp_path: Path) -> None:
    path = save(tmp_path / "a[1].png", random_picture(4, 5))
    assert names(find_inputs([str(path)])) == ["a[1].png"]


def test_a_list_names_its_files(folder: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text(f"# mine\n{folder}/sub/3.jpg\n\n{folder}/2.png\n{folder}/2.png\n")
    assert names(find_inputs([f"@{listing}"])) == ["sub/3.jpg", "2.png"]


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x0b", "\x1d"])
def test_only_newlines_end_a_line_of_a_list(tmp_path: Path, odd: str) -> None:
    path = save(tmp_path / f"a{odd}b.png", random_picture(4, 5))
    (tmp_path / "list.txt").write_bytes(f"{path}\r\n".encode())
    assert names(find_inputs([f"@{tmp_path / 'list.txt'}"])) == [path.name]


def test_a_list_with_a_byte_order_mark_keeps_its_first_line(folder: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text(f"{folder}/10.png\n{folder}/2.png\n", encoding="utf-8-sig")
    assert names(find_inputs([f"@{listing}"])) == ["10.png", "2.png"]


def test_a_listed_file_that_is_missing_keeps_its_problem(folder: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text(f"{folder}/2.png\n{folder}/missing.png\n")
    good, bad = find_inputs([f"@{listing}"]).sources
    assert good.problem is None
    assert "no such file" in str(bad.problem)


def test_a_listed_file_that_is_no_picture_is_reported(folder: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text(f"{folder}/2.png\n{folder}/notes.txt\n")
    assert problems(find_inputs([f"@{listing}"])).keys() == {"notes.txt"}


def test_standard_input_is_one_image(folder: Path) -> None:
    data = (folder / "2.png").read_bytes()
    inputs = find_inputs(["-"], data)
    assert inputs.single
    assert inputs.sources[0].read().pixels.shape == (4, 5, 3)
    assert inputs.sources[0].note is None
    with pytest.raises(UsageError, match="standard input is empty"):
        find_inputs(["-"], b"")
    with pytest.raises(DataError, match="not an image"):
        find_inputs(["-"], b"text, not an image")


def test_frames_are_images_with_their_own_names(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), (shade, 0, 0)) for shade in (0, 100, 200)]
    for name in ("a.gif", "a.tif", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        sources = find_inputs([str(tmp_path / name)]).sources
        assert [source.frame for source in sources] == [0, 1, 2]
        assert [source.stem for source in sources] == ["a-0001", "a-0002", "a-0003"]
        assert sources[2].label.endswith("[3]")
    assert len(find_inputs([str(tmp_path)]).sources) == 9


@pytest.mark.parametrize("words", ["nothing/here", "nothing/*.png", "@nothing.txt"])
def test_missing_inputs_are_refused(words: str) -> None:
    with pytest.raises(DataError, match=r"no such|no image matches"):
        find_inputs([words])


def test_empty_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n# none\n")
    with pytest.raises(DataError, match="the list is empty"):
        find_inputs([f"@{tmp_path}/list.txt"])
    with pytest.raises(DataError, match="no images in this folder"):
        find_inputs([str(tmp_path)])
    (tmp_path / "list.txt").write_text("a.png", encoding="utf-16")
    with pytest.raises(DataError, match="UTF-16"):
        find_inputs([f"@{tmp_path}/list.txt"])


def test_a_damaged_file_keeps_its_problem(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("text")
    save_rgb8(tmp_path / "good.png", random_picture(3, 3).pixels)
    bad, good = find_inputs([str(tmp_path)]).sources
    assert "not an image" in str(bad.problem)
    assert good.problem is None


def problems(inputs: Inputs) -> dict[str, str]:
    """The problem of each input that has one, by name."""
    return {source.path.name: str(source.problem) for source in inputs.sources if source.problem}


def test_a_folder_is_searched_through_links_once_and_a_broken_link_is_reported(
    folder: Path,
) -> None:
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "gone.png").symlink_to(folder / "nowhere")
    (folder / "pictures.png").mkdir()
    inputs = find_inputs([str(folder)])
    assert names(inputs) == ["2.png", "10.png", "gone.png", "loop.png", "sub/3.jpg"]
    found = problems(inputs)
    assert "no such file" in found.pop("gone.png")
    assert os.strerror(errno.ELOOP) in found.pop("loop.png")
    assert not found


def test_a_listed_name_that_is_too_long_is_a_problem_of_one_input(
    folder: Path, tmp_path: Path
) -> None:
    long = tmp_path / f"{'a' * 300}.png"
    video = tmp_path / f"{'b' * 300}.mp4"
    (tmp_path / "list.txt").write_text(f"{folder}/2.png\n{long}\n{video}\n")
    inputs = find_inputs([f"@{tmp_path}/list.txt"])
    assert [source.problem is None for source in inputs.sources] == [True, False, False]
    assert all(os.strerror(errno.ENAMETOOLONG) in text for text in problems(inputs).values())
    with pytest.raises(DataError, match=os.strerror(errno.ENAMETOOLONG)):
        find_inputs([str(long)])


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("name", ["2.png", "3.mp4"])
def test_an_error_of_the_file_system_is_a_problem_of_one_input(
    number: int, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "3.mp4").write_bytes(b"no video")
    stat = Path.stat

    def refuse(path: Path, **options: bool) -> os.stat_result:
        if path.name == name:
            raise OSError(number, os.strerror(number), str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    inputs = find_inputs([str(folder)])
    assert {"2.png", "10.png", "3.mp4", "sub/3.jpg"} == set(names(inputs))
    assert os.strerror(number) in problems(inputs)[name]
    assert ("the image" in problems(inputs)[name]) == (name == "2.png")
    assert "10.png" not in problems(inputs)


def test_a_sub_folder_that_cannot_be_listed_is_a_problem_of_one_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name in ("sub", "sub2"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    (folder / "sub2").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    inputs = find_inputs([str(folder)])
    assert names(inputs) == ["2.png", "10.png", "sub", "sub2"]
    assert all("Permission denied" in problems(inputs)[name] for name in ("sub", "sub2"))
    with pytest.raises(DataError, match="Permission denied"):
        find_inputs([str(folder / "sub")])


def test_names_that_are_not_utf8_are_inputs(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    save(tmp_path / "in" / name, random_picture(4, 5))
    (tmp_path / "list.txt").write_bytes(os.fsencode(tmp_path / "in" / name) + b"\n")
    for spec in (tmp_path / "in", tmp_path / "in" / name, f"@{tmp_path}/list.txt"):
        (source,) = find_inputs([str(spec)]).sources
        assert source.problem is None
        assert source.stem == Path(name).stem


def test_several_arguments_form_one_list_of_inputs(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "one.png", random_picture(4, 5))
    inputs = find_inputs([str(tmp_path / "one.png"), str(folder / "2.png"), f"{folder}/sub"])
    assert not inputs.single
    assert names(inputs) == ["one.png", "in/2.png", "in/sub/3.jpg"]
    both = find_inputs([str(folder / "10.png"), str(folder / "2.png"), f"{folder}/*.png"])
    assert names(both) == ["10.png", "2.png"]
    twice = [str(folder / "2.png"), f"{folder}/sub/../2.png", os.path.relpath(folder / "2.png")]
    assert names(find_inputs(twice)) == ["2.png"]
    save(tmp_path / "other" / "3.jpg", random_picture(4, 5))
    folders = find_inputs([f"{folder}", f"{tmp_path}/other"])
    assert names(folders) == ["in/2.png", "in/10.png", "in/sub/3.jpg", "other/3.jpg"]
    with pytest.raises(UsageError, match="cannot be - and files"):
        find_inputs(["-", str(folder)])


def test_inputs_on_two_drives_of_windows_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs mirror the paths below the folder that all inputs share."""

    def on_two_drives(paths: Iterable[str]) -> str:
        one, other = paths
        return ntpath.commonpath([f"C:{one}", f"D:{other}"])

    monkeypatch.setattr(os.path, "commonpath", on_two_drives)
    with pytest.raises(UsageError, match="on different drives"):
        find_inputs([str(folder / "2.png"), str(folder / "sub" / "3.jpg")])


def test_pictures_are_recognised_by_their_content(folder: Path) -> None:
    data = (folder / "2.png").read_bytes()
    for name in ("noext", "a.dat", "b.jpg_large", "c.mp4", "d.jpg"):
        (folder / name).write_bytes(data)
    (folder / "noise").write_bytes(b"no picture")
    found = names(find_inputs([str(folder)]))
    assert found == ["2.png", "10.png", "a.dat", "b.jpg_large", "c.mp4", "d.jpg", "noext",
                     "sub/3.jpg"]  # fmt: skip
    assert not problems(find_inputs([str(folder)]))


def test_a_typescript_file_is_not_a_video(folder: Path) -> None:
    (folder / "code.ts").write_text("export const a = 1\n" * 60)
    (folder / "clip.ts").write_bytes((b"\x47" + bytes(187)) * 10)
    (folder / "clip.m2ts").write_bytes((bytes(4) + b"\x47" + bytes(187)) * 10)
    inputs = find_inputs([str(folder)])
    assert "code.ts" not in names(inputs)
    assert set(problems(inputs)) == {"clip.ts", "clip.m2ts"}  # taken for videos, but damaged


def test_pictures_that_are_not_read_are_counted_by_kind(folder: Path) -> None:
    for name in ("1.dng", "2.nef", "sub/3.CR2", *(f"more/{k}.arw" for k in range(10))):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"II*\0" + bytes(60))
    (folder / "light.exr").write_bytes(b"\x76\x2f\x31\x01" + bytes(60))
    inputs = find_inputs([str(folder)])
    assert names(inputs) == ["2.png", "10.png", "sub/3.jpg"]
    counts = {one.kind: (one.count, len(one.files)) for one in inputs.not_read}
    assert counts == {"camera raw": (13, 13), "high dynamic range": (1, 1)}
    assert "13 camera raw files not read: develop" in str(inputs.not_read[0])
    alone = find_inputs([str(folder / "2.png"), str(folder / "1.dng")])
    assert names(alone) == ["2.png"]
    assert alone.not_read[0].count == 1
    with pytest.raises(DataError, match="no image matches") as caught:
        find_inputs([f"{folder}/*.dng"])
    assert "16-bit TIFF" in str(caught.value.hint)


def test_videos_in_other_containers_are_counted(folder: Path) -> None:
    jpeg = save(folder / "sub" / "a.jpg", random_picture(8, 8)).read_bytes()
    for name, data in {"a.mjpeg": jpeg, "b.y4m": b"YUV4MPEG2 W2 H2\n", "c.ogv": b"OggS"}.items():
        (folder / name).write_bytes(data)
    inputs = find_inputs([str(folder)])
    assert [(one.kind, one.count) for one in inputs.not_read] == [("unsupported video", 3)]
    for name in ("a.mjpeg", "b.y4m"):
        with pytest.raises(DataError, match="not read: unsupported video") as caught:
            find_inputs([str(folder / name)])
        assert "convert to .mkv" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "suffix", "codec"),
    [
        *((f"a.{one}", ".mpg", "mpeg2video") for one in ("vob", "mod", "mpe")),
        *((f"a.{one}", ".ts", "libx264") for one in ("m2t", "tod")),
        *((f"a.{one}", ".mp4", "libx264") for one in ("qt", "f4v", "3g2")),
        *[("a.asf", ".wmv", "libx264"), ("a.divx", ".avi", "mpeg4"), ("a.mk3d", ".mkv", "mpeg4")],
    ],
)
def test_less_common_names_of_videos_are_read(
    tmp_path: Path, name: str, suffix: str, codec: str
) -> None:
    pytest.importorskip("av")
    from tests.kit.video import make_clip

    clip = make_clip(tmp_path / f"clip{suffix}", rate="25", codec=codec, sound=False)
    clip.rename(tmp_path / name)
    (tmp_path / "go.mod").write_text("module example\n" * 99)
    (source,) = find_inputs([str(tmp_path)]).sources
    assert (source.path.name, source.problem) == (name, None)
    assert source.video is not None


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts", ".mpg", ".wmv", ".flv"])
def test_a_video_on_standard_input_is_refused(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("av")
    from tests.kit.video import make_clip

    codec = "mpeg2video" if suffix == ".mpg" else "libx264"
    data = make_clip(tmp_path / f"a{suffix}", rate="25", codec=codec, sound=False).read_bytes()
    with pytest.raises(UsageError, match="videos cannot be read from standard input"):
        find_inputs(["-"], data)


def test_a_linked_folder_and_a_linked_file_are_treated_like_others(
    folder: Path, tmp_path: Path
) -> None:
    frames = [Image.new("RGB", (6, 4), (shade, 0, 0)) for shade in (0, 200)]
    (tmp_path / "other").mkdir()
    for place in (folder, tmp_path / "other"):
        frames[0].save(place / "g.gif", save_all=True, append_images=frames[1:])
    (folder / "link").symlink_to(tmp_path / "other")
    (folder / "linked.gif").symlink_to(tmp_path / "other" / "g.gif")
    sources = [one for one in find_inputs([str(folder)]).sources if one.path.suffix == ".gif"]
    assert [(one.relative.as_posix(), one.frame) for one in sources] == [
        (name, frame) for name in ("g.gif", "link/g.gif", "linked.gif") for frame in (0, 1)
    ]


def test_a_folder_of_many_files_takes_about_2_kb_per_file(tmp_path: Path) -> None:
    data = save(tmp_path / "0.png", random_picture(4, 5)).read_bytes()
    for number in range(1, 400):
        (tmp_path / f"{number}.png").write_bytes(data)
    find_inputs([str(tmp_path)])  # fills caches and loads modules
    peaks = []
    for _ in range(3):  # threads of earlier tests may allocate memory meanwhile
        tracemalloc.start()
        try:
            inputs = find_inputs([str(tmp_path)])
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert len(inputs.sources) == 400
    assert min(peaks) < 4000 * 400  # Python 3.13: 2065, older ones somewhat less
