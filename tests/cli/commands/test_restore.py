"""`c2fdft restore` as a user runs it: exit codes, output, JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from c2fdft_cli.core.network import DFT
from c2fdft_cli.data.images.picture import read_picture
from c2fdft_cli.engine.restore.manifest import MANIFEST_NAME
from tests.kit.command import run
from tests.kit.restore import random_picture, save, write_checkpoint
from tests.kit.weights import write_random


@pytest.fixture
def coarse(tmp_path: Path, tiny_net: Callable[..., DFT]) -> Path:
    return write_checkpoint(tmp_path / "coarse.pt", tiny_net(), stage="coarse")


@pytest.fixture
def fine(tmp_path: Path, tiny_net: Callable[..., DFT]) -> Path:
    return write_checkpoint(tmp_path / "fine.pt", tiny_net(), stage="fine", grid=[999, 500])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "in" / "a.png", random_picture(9, 16))
    save(tmp_path / "in" / "sub" / "b.jpg", random_picture(8, 8, seed=1))
    return tmp_path / "in"


call = partial(run, "restore")


def test_the_next_command_uses_the_protocol_of_the_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another protocol would give other scores for the same pictures."""
    monkeypatch.chdir(tmp_path)
    path = write_random(tmp_path / "weights.pt", protocol="derain")
    result = call("--weights", path, "--steps", 1, "--", folder, "-out")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("\nnext: c2fdft eval ./-out TARGET --protocol derain\n")


def test_without_targets_the_next_command_makes_comparisons(
    folder: Path, coarse: Path, tmp_path: Path
) -> None:
    words = (folder, tmp_path / "out", "--weights", coarse, "--steps", 1, "--overwrite")
    assert "--compare DIR shows what changed" in call(*words).stderr
    assert "--compare DIR" not in call(*words, "--compare", tmp_path / "seen").stderr
    assert "--compare DIR" not in call(*words, "--json").stderr


@pytest.mark.parametrize("end", [(), ("out",)])
def test_a_name_with_spaces_without_quotes_is_recognised(
    tmp_path: Path, end: tuple[str, ...]
) -> None:
    save(tmp_path / "my photos 2026" / "a.png", random_picture(9, 16))
    words = f"{tmp_path}/my photos 2026".split(" ")
    result = call(*words, *end)
    assert result.exit_code == 3
    assert f"hint: a name with spaces needs quotes: '{tmp_path}/my photos 2026'" in result.stderr
    assert "hint: check the path" in call(tmp_path / "nothing", "out").stderr


def test_interchanged_paths_are_recognised(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    said = call("dry picture.png", "a.png").stderr
    assert "error: dry picture.png: no such file or folder\n" in said
    assert "if a.png is the input, it comes first: c2fdft restore a.png 'dry picture.png'\n" in said
    assert said.count("hint: ") == 1
    # a folder of earlier results is no sign of it
    assert call("nowhere", tmp_path).stderr.endswith("hint: check the path\n")


@pytest.mark.parametrize("extra", [(), ("--overwrite",)])
def test_interchanged_folders_replace_no_original(
    folder: Path, coarse: Path, tmp_path: Path, extra: tuple[str, ...]
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    words = ("--weights", coarse, "--steps", 1)
    assert call(folder, tmp_path / "out", *words).exit_code == 0
    result = call(tmp_path / "out", folder, *words, *extra)
    assert result.exit_code == 2
    assert "was made from this picture, which it would replace" in result.stderr
    assert "IN and OUT may be interchanged" in result.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
    parts = call(tmp_path / "out" / "sub", folder / "sub", *words, *extra)
    assert "was made from this picture" not in parts.stderr  # b.jpg became b.png
    assert call(folder, tmp_path / "same", *words, "--format", "same").exit_code == 0
    parts = call(tmp_path / "same" / "sub", folder / "sub", *words, "--format", "same", *extra)
    assert parts.exit_code == 2
    assert "was made from this picture" in parts.stderr
    # the restored pictures may be restored again, into another folder
    assert call(tmp_path / "out", tmp_path / "again", *words).exit_code == 0
    assert call(tmp_path / "out", tmp_path / "again", *words, *extra).exit_code == 0


def test_a_file_that_cannot_be_read_has_no_rate(folder: Path, coarse: Path, tmp_path: Path) -> None:
    """It fails immediately, so that a rate that counts it would be too high."""
    (folder / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = call(folder, tmp_path / "out", "--weights", coarse, "--steps", 1)
    failed = next(line for line in result.stderr.splitlines() if line.endswith("FAILED"))
    assert "images/s" not in failed
    assert "of 3 images failed" in result.stderr


def test_a_folder_is_restored(folder: Path, coarse: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call(folder, out, "--weights", coarse, "--steps", 1)
    assert result.exit_code == 0, result.output
    assert "restored: 2 images" in result.stdout
    assert "next: c2fdft eval" in result.stdout
    assert (out / "a.png").exists()
    assert (out / "sub" / "b.png").exists()
    before = (out / "a.png").read_bytes()
    again = call(folder, out, "--weights", coarse, "--steps", 1)
    assert again.exit_code == 0
    assert "skipped: 2 outputs already exist" in again.stderr
    other = call(folder, out, "--weights", coarse, "--steps", 2)
    assert other.exit_code == 6
    what = "made with other settings: timesteps 999, now 999,0"
    assert other.stderr.startswith(
        f"warning: 2 files already exist, not overwritten; for each: {what}"
    )
    assert f"error: {out}: 2 existing files may differ from what this command makes" in other.stderr
    assert f"a.png: {what}" in other.stderr
    assert "hint: use --overwrite" in other.stderr
    assert "next:" not in other.stdout
    assert (out / "a.png").read_bytes() == before
    replaced = call(folder, out, "--weights", coarse, "--steps", 2, "--overwrite")
    assert replaced.exit_code == 0
    assert (out / "a.png").read_bytes() != before


def test_json_is_one_document(folder: Path, fine: Path, tmp_path: Path) -> None:
    words = ("--weights", fine, "--precision", "fp32", "--seed", 7, "--self-ensemble", "--json")
    result = call(folder, tmp_path / "out", *words)
    document = json.loads(result.stdout)
    assert document["grid"] == [999, 500]
    assert (document["eta"], document["seed"], document["draws"]) == (0, 7, 8)
    assert (document["restored"], document["failed"], document["skipped"]) == (2, 0, [])
    record = document["images"][0]
    assert record.keys() >= {"source", "output", "height", "width", "calls", "grid", "seconds"}
    assert record.keys() >= {"executor", "precision", "peak_memory", "error"}
    assert document["next"].startswith("c2fdft eval")


def test_there_is_no_next_command_for_videos_alone(coarse: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    from tests.kit.video import make_clip

    clip = tmp_path / "in" / "a.mp4"
    clip.parent.mkdir()
    make_clip(clip, size="16x16", seconds=0.2, sound=False)
    words = (clip.parent, tmp_path / "out", "--weights", coarse, "--steps", 1, "--json")
    first, again = (json.loads(call(*words).stdout) for _ in range(2))
    assert (first["restored"], len(again["skipped"])) == (1, 1)
    assert first["next"] is again["next"] is None


def test_fine_weights_with_other_timesteps_give_a_warning(
    folder: Path, fine: Path, tmp_path: Path
) -> None:
    result = call(folder, tmp_path / "out", "--weights", fine, "--steps", 3)
    assert result.exit_code == 0
    assert (
        "trained on the timesteps 999,500 and are likely to restore worse on 999,500,0"
        in " ".join(result.stderr.split())
    )
    for n, words in enumerate((["--grid", "999,500"], ["--steps", "2"])):
        quiet = call(folder, tmp_path / f"quiet{n}", "--weights", fine, *words)
        assert "warning" not in quiet.stderr
        assert "timesteps 999,500," in quiet.stdout


@pytest.mark.usefixtures("packaged")
def test_missing_weights_are_an_error(folder: Path, tmp_path: Path) -> None:
    result = call(folder, tmp_path / "out")
    assert result.exit_code == 4
    assert "there are no packaged weights for the task derain" in result.stderr
    assert "c2fdft demo" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("packaged")
def test_a_file_that_is_not_a_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "not.pt").write_text("no")
    result = call(folder, tmp_path / "out", "--weights", tmp_path / "not.pt")
    assert result.exit_code == 4
    assert "not a checkpoint" in result.stderr
    assert call(folder, tmp_path / "out", "--weights", "missing.pt").exit_code == 4
    assert call(folder, tmp_path / "out", "--weights", "derain").exit_code == 4


def test_a_corrupt_file_among_others_is_a_partial_failure(
    folder: Path, coarse: Path, tmp_path: Path
) -> None:
    (folder / "bad.png").write_text("text")
    result = call(folder, tmp_path / "out", "--weights", coarse, "--steps", 1, "--json")
    assert result.exit_code == 6
    assert f"error: {tmp_path}/out: 1 of 3 images failed" in result.stderr
    assert "bad.png" in result.stderr
    document = json.loads(result.stdout)
    assert (document["restored"], document["failed"]) == (2, 1)


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_a_single_corrupt_file_is_a_data_error(
    json_option: list[str], folder: Path, coarse: Path, tmp_path: Path
) -> None:
    (folder / "bad.png").write_text("text")
    result = call(folder / "bad.png", tmp_path / "out", "--weights", coarse, *json_option)
    assert result.exit_code == 3
    assert result.stderr.startswith(f"error: {folder}/bad.png: cannot read the image: not an image")


def test_an_output_inside_a_file_is_refused(folder: Path, coarse: Path, tmp_path: Path) -> None:
    result = call(folder, tmp_path / "coarse.pt" / "out", "--weights", coarse)
    assert result.exit_code == 5
    assert "regular file" in result.stderr


def test_an_image_that_is_too_large_is_refused(coarse: Path, tmp_path: Path) -> None:
    save(tmp_path / "a.png", random_picture(64, 48))
    words = (tmp_path / "a.png", tmp_path / "x.png", "--weights", coarse, "--max-memory", "64k")
    result = call(*words)
    assert result.exit_code == 5
    assert "48x64 px needs" in result.stderr
    assert "megapixels fit" in result.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--grid 5,6", "--grid must be descending timesteps such as 999,500, got 5,6"),
        ("--grid 9 --steps 2", "--grid cannot be combined with --steps or --spacing"),
        ("--spacing odd --steps 2", "--spacing must be linspace, "),
        ("--format gif", "--format must be png, "),
        ("--bit-depth 12", "--bit-depth must be 8 or 16, got 12"),
        ("--max-memory much", "--max-memory must be a size such as 900M or 6G, got much"),
        ("--tile 20", "--tile must be a multiple of 8 and at least 32, got 20"),
        ("--compile yes", "--compile must be auto, "),
        ("--device tpu", "--device must be auto, "),
        ("--precision fp8", "--precision must be auto, "),
        ("--steps 0", "--steps must be at least 1, got 0"),
        ("--samples 0", "--samples must be 1 to 1000, got 0"),
    ],
)
def test_invalid_options_are_refused(
    words: str, says: str, folder: Path, coarse: Path, tmp_path: Path
) -> None:
    result = call(folder, tmp_path / "out", "--weights", coarse, *words.split())
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {says}")
    assert not (tmp_path / "out").exists()


def test_missing_inputs_are_refused(coarse: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in ("missing", tmp_path / "empty", tmp_path / "*.nothing"):
        result = call(source, tmp_path / "out", "--weights", coarse)
        assert result.exit_code == 3
        assert not (tmp_path / "out").exists()


def test_an_image_can_be_piped_through(folder: Path, coarse: Path, tmp_path: Path) -> None:
    data = (folder / "a.png").read_bytes()
    result = call("-", "-", "--weights", coarse, "--grid", "500", stdin=data)
    assert result.exit_code == 0
    assert result.stdout_bytes.endswith(b"IEND\xaeB`\x82"), "no text follows the picture"
    (tmp_path / "piped.png").write_bytes(result.stdout_bytes)
    assert read_picture(tmp_path / "piped.png").pixels.shape == (9, 16, 3)
    assert call("-", "-", "--weights", coarse, "--json", stdin=data).exit_code == 2
    assert call("-", "-", "--weights", coarse, stdin=b"").exit_code == 2
    assert call("-", "-", "--weights", coarse, stdin=b"text").exit_code == 3


def test_an_animation_through_a_pipe_loses_its_other_frames_with_a_note(
    coarse: Path, tmp_path: Path
) -> None:
    frames = [Image.new("RGB", (6, 4), (shade, 0, 0)) for shade in (0, 100, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    data = (tmp_path / "a.gif").read_bytes()
    for out in ("-", tmp_path / "b.png"):
        result = call("-", out, "--weights", coarse, "--grid", "500", stdin=data)
        assert result.exit_code == 0
        said = " ".join(result.stderr.split())
        assert "note: stdin: the first of 3 frames is restored; to restore all" in said
        if out == "-":
            assert result.stdout_bytes.startswith(b"\x89PNG")


def test_a_file_named_like_standard_output_is_a_file(
    folder: Path, coarse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-").write_text("not ours")
    result = call(folder / "a.png", "-", "--weights", coarse, "--grid", "500")
    assert result.exit_code == 0
    assert result.stdout_bytes.startswith(b"\x89PNG")
    assert Path("-").read_text() == "not ours"


def test_output_formats(folder: Path, coarse: Path, tmp_path: Path) -> None:
    words = ("--weights", coarse, "--grid", "500")
    assert call(folder, tmp_path / "t", *words, "--format", "tif", "--bit-depth", 16).exit_code == 0
    assert read_picture(tmp_path / "t" / "a.tif").bit_depth == 16
    assert call(folder, tmp_path / "s", *words, "--format", "same", "--suffix", "_r").exit_code == 0
    assert sorted(p.name for p in (tmp_path / "s").rglob("*.*g")) == ["a_r.png", "b_r.jpg"]


def test_options_change_what_is_written(coarse: Path, tmp_path: Path) -> None:
    photo = save(tmp_path / "photo.png", random_picture(40, 72))

    def restored(name: str, *words: object) -> tuple[bytes, dict[str, Any]]:
        more = ("--weights", coarse, "--grid", "500,100", "--precision", "fp32", "--json", *words)
        result = call(photo, tmp_path / name, *more)
        assert result.exit_code == 0, result.output
        return (tmp_path / name).read_bytes(), json.loads(result.stdout)["images"][0]

    plain, record = restored("a.png")
    assert record["executor"] == "whole"
    for name, words in (("b", ("--eta", 1)), ("c", ("--seed", 1)), ("d", ("--self-ensemble",))):
        assert restored(f"{name}.png", *words)[0] != plain
    assert restored("e.png", "--tile", 32)[1]["executor"] == "tiles of 32 px"
    sizes = [len(restored(f"{q}.jpg", "--quality", q)[0]) for q in (10, 95, 100)]
    assert sizes == sorted(set(sizes))


def test_weights_that_restore_to_nan_write_nothing(
    folder: Path, tmp_path: Path, tiny_net: Callable[..., DFT]
) -> None:
    net = tiny_net()
    net.output.weight.data.fill_(3e38)  # the weights are finite, but their sums are not
    broken = write_checkpoint(tmp_path / "huge.pt", net, stage="coarse")
    single = call(folder / "a.png", tmp_path / "a.png", "--weights", broken)
    assert single.exit_code == 4
    assert "a.png: the network produced NaN or infinite values" in single.stderr
    result = call(folder, tmp_path / "out", "--weights", broken, "--json")
    assert result.exit_code == 6
    document = json.loads(result.stdout)
    assert (document["restored"], document["failed"], document["next"]) == (0, 2, None)
    assert not (tmp_path / "a.png").exists()
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_single_existing_output_is_named(folder: Path, coarse: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_text("mine")
    result = call(folder / "a.png", tmp_path / "mine.png", "--weights", coarse)
    assert result.exit_code == 2
    assert (
        "mine.png: OUT exists, and there is no record that this program wrote it" in result.stderr
    )
    assert (tmp_path / "mine.png").read_text() == "mine"


def test_an_unquoted_glob_replaces_no_input(folder: Path, coarse: Path, tmp_path: Path) -> None:
    save(folder / "b.png", random_picture(9, 16, seed=2))
    before = (folder / "b.png").read_bytes()
    for more in ([], ["--overwrite"]):
        result = call(folder / "a.png", folder / "b.png", "--weights", coarse, *more)
        assert result.exit_code == 2
        assert "name a folder" in result.stderr
    assert (folder / "b.png").read_bytes() == before
    words = [folder / "a.png", folder / "b.png", tmp_path / "out", "--weights", coarse]
    assert call(*words).exit_code == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"a.png", "b.png"}


def test_unsupported_pictures_are_reported(folder: Path, coarse: Path, tmp_path: Path) -> None:
    (folder / "1.dng").write_bytes(b"II*\0" + bytes(60))
    result = call(folder, tmp_path / "out", "--weights", coarse)
    assert result.exit_code == 0
    assert "note: 1 camera raw file not read: develop" in result.stderr
    result = call(folder, tmp_path / "other", "--weights", coarse, "--json")
    (kind,) = json.loads(result.stdout)["not_read"]
    assert (kind["kind"], kind["count"]) == ("camera raw", 1)
    assert kind["files"] == [str(folder / "1.dng")]


def test_pictures_that_are_not_overwritten_are_named(
    folder: Path, coarse: Path, tmp_path: Path
) -> None:
    words = ("--weights", coarse, "--compare", tmp_path / "compare")
    call(folder / "a.png", tmp_path / "one.png", *words)
    (picture,) = (tmp_path / "compare").iterdir()
    again = call(folder / "a.png", tmp_path / "one.png", *words, "--overwrite")
    assert "already exists" not in again.stderr
    picture.write_bytes(b"older")  # as by an earlier version, which recorded no comparisons
    (tmp_path / MANIFEST_NAME).unlink()
    (tmp_path / "one.png").unlink()
    result = call(folder / "a.png", tmp_path / "one.png", *words)
    assert result.exit_code == 0, result.output
    assert f"{picture} already exists, not overwritten" in result.stderr
    assert picture.read_bytes() == b"older"
    for other in ("b", "c"):
        shutil.copy(folder / "a.png", folder / f"{other}.png")
    call(folder, tmp_path / "many", "--weights", coarse)
    result = call(folder, tmp_path / "many", "--weights", coarse, "--compare", tmp_path / "new")
    kept = [line for line in result.stderr.splitlines() if "not overwritten" in line]
    words = ("--weights", coarse, "--compare", tmp_path / "newer", "--json")
    for image in json.loads(call(folder, tmp_path / "many", *words).stdout)["images"]:
        note = f"{image['output']} already exists, not overwritten (use --overwrite)"
        assert (image["notes"][-1], image["existed"]) == (note, True)
        assert "kept" not in image
    count = len(list((tmp_path / "many").rglob("*.png")))
    first = tmp_path / "many" / "a.png"
    said = "files already exist, not overwritten (use --overwrite)"
    assert kept == [f"note: {count} {said}: {first}, ..."]


@pytest.mark.parametrize("words", [("", "out"), ("in", "")])
def test_an_empty_argument_is_not_a_folder(
    words: tuple[str, str], folder: Path, coarse: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*words, "--weights", coarse)
    assert result.exit_code == 2
    assert f"{'IN' if not words[0] else 'OUT'} is empty" in result.stderr


def test_a_run_folder_gives_a_hint_to_its_weights(folder: Path, fine: Path, tmp_path: Path) -> None:
    result = call(folder, tmp_path / "out", "--weights", tmp_path)
    assert result.exit_code == 4
    assert "a folder, not a checkpoint" in result.stderr
    assert str(fine) in result.stderr


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_names_that_are_not_utf8_are_restored(
    words: list[str], folder: Path, coarse: Path, tmp_path: Path
) -> None:
    latin = os.fsdecode(b"caf\xe9.png")
    save(folder / latin, random_picture(8, 8))
    (folder / os.fsdecode(b"bad\xe9.png")).write_text("text")
    result = call(folder, tmp_path / "out", "--weights", coarse, "--steps", 1, *words)
    assert result.exit_code == 6, result.output
    assert "1 of 4 images failed" in result.stderr
    assert (tmp_path / "out" / latin).exists()
    if words:
        images = json.loads(result.stdout)["images"]
        assert {Path(image["source"]).name for image in images} >= {latin}
        assert [image["error"] is None for image in images].count(False) == 1


@pytest.mark.acceptance
def test_a_single_output_whose_name_is_not_utf8(folder: Path, coarse: Path, tmp_path: Path) -> None:
    """Its name is printed to standard output as its bytes."""
    latin = save(folder / os.fsdecode(b"caf\xe9.png"), random_picture(8, 8))
    out = tmp_path / os.fsdecode(b"rest\xe9.png")
    command = [sys.executable, "-m", "c2fdft_cli", "restore", latin, out, "--weights", coarse]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"rest\xe9.png" in done.stdout
    assert out.exists()
