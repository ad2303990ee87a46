"""The catalogue of packaged weights: damaged ones, and the installed one."""

from __future__ import annotations

import errno
import json
import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import c2fdft_cli as c2fdft
from c2fdft_cli.core.network import DFT
from c2fdft_cli.data.images.picture import read_rgb8
from c2fdft_cli.engine.restore.job import restore
from c2fdft_cli.engine.weights.catalogue import (
    CATALOGUE,
    MAX_FILE_BYTES,
    PackagedWeights,
    PublishedScore,
    checked_file,
    is_packaged,
    make_entry,
    read_catalogue,
    weights_folder,
)
from c2fdft_cli.errors import CheckpointError
from c2fdft_cli.vocabulary import PACKAGED_TASKS
from recipes.scripts.pack_weights import DERIVED
from tests.kit.restore import Request, plan, random_picture, save
from tests.kit.weights import FACTS, package, packaged_once

ROOT = Path(__file__).parents[3]


@pytest.fixture
def derain(
    packaged: Path, tiny_net: Callable[..., DFT], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    def package_one(folder: Path) -> None:
        package(folder, "derain", tiny_net(), [999, 500])

    packaged_once(tmp_path_factory, "one_package", packaged, package_one)
    return packaged / "derain.pt"


def test_an_entry_that_is_written_is_read_back(packaged: Path, derain: Path) -> None:
    entry = read_catalogue()["derain"]
    assert entry == read_catalogue(packaged)["derain"]
    said = asdict(entry)
    assert said.items() >= FACTS.items()
    assert entry.scores == [PublishedScore(**FACTS["scores"][0])]
    assert (entry.bytes, entry.grid, entry.network["dim"]) == (derain.stat().st_size, [999, 500], 8)
    assert checked_file(entry) == derain
    (packaged.parent / "link.pt").symlink_to(derain)
    for path in (
        derain,
        packaged / ".." / packaged.name / "derain.pt",
        packaged.parent / "link.pt",
    ):
        assert is_packaged(path)
    assert not is_packaged(packaged.parent / "derain.pt")


@pytest.mark.parametrize("text", [None, "", " \n", '{"format_version": 1, "weights": {}}'])
def test_a_folder_without_a_catalogue_has_no_weights(text: str | None, packaged: Path) -> None:
    if text is not None:
        (packaged / CATALOGUE).write_text(text)
    assert read_catalogue() == {}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "7",
        '{"weights": {}}',
        '{"format_version": 2, "weights": {}}',
        '{"format_version": 1, "weights": []}',
        '{"format_version": 1, "weights": {"derain": 5}}',
        '{"format_version": 1, "weights": {"derain": {}}}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_catalogue_is_refused(text: str, packaged: Path) -> None:
    (packaged / CATALOGUE).write_text(text)
    with pytest.raises(CheckpointError, match="installation of c2fdft is damaged") as caught:
        read_catalogue()
    assert "pip install --force-reinstall" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("file", "../derain.pt", "file must be derain.pt"),
        ("file", "other.pt", "file must be derain.pt"),
        ("task", "paint", "task must be .derain., .*, got .paint."),
        ("grid", [], "grid must have at least 1 item"),
        ("grid", ["9"], "must be a valid integer, got .9."),
        ("bytes", MAX_FILE_BYTES + 1, f"bytes must be less than or equal to {MAX_FILE_BYTES}"),
        ("bytes", True, "bytes must be a valid integer, got True"),
        ("parameters", "many", "parameters must be a valid integer, got .many."),
        ("seconds_per_megapixel", float("nan"), "must be a finite number, got nan"),
        ("scores", [{"set": "x"}], "images is missing"),
        ("scores", [3], "must be a dictionary, got 3"),
        ("colour", "red", "unknown key colour"),
    ],
)
@pytest.mark.usefixtures("derain")
def test_invalid_values_are_refused(key: str, value: Any, says: str, packaged: Path) -> None:
    content = json.loads((packaged / CATALOGUE).read_text())
    content["weights"]["derain"][key] = value
    (packaged / CATALOGUE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"damaged.*derain: .*{says}"):
        read_catalogue()


def test_a_name_that_leads_out_of_the_folder_is_refused(packaged: Path, derain: Path) -> None:
    content = json.loads((packaged / CATALOGUE).read_text())
    entry = content["weights"].pop("derain")
    content["weights"]["../derain"] = {**entry, "file": "../derain.pt"}
    (packaged / CATALOGUE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="damaged"):
        read_catalogue()
    assert derain.is_file()


def test_damaged_files_are_refused(derain: Path) -> None:
    entry, data = read_catalogue()["derain"], derain.read_bytes()
    derain.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=f"damaged.*{len(data) - 1} bytes, the catalogue"):
        checked_file(entry)
    derain.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    with pytest.raises(CheckpointError, match=r"damaged.*SHA-256"):
        checked_file(entry)
    derain.unlink()
    with pytest.raises(CheckpointError, match=r"damaged.*missing"):
        checked_file(entry)
    assert read_catalogue()["derain"] == entry  # listing the weights opens none of their files


def test_files_that_the_system_does_not_read_are_not_damaged(
    derain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = read_catalogue()["derain"]

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_text", fail)
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(CheckpointError, match=f"{CATALOGUE}: too many files"):
        read_catalogue()
    with pytest.raises(CheckpointError, match=f"{derain.name}: too many files"):
        checked_file(entry)


def test_every_packaged_file_is_in_the_catalogue() -> None:
    named = {entry.file for entry in read_catalogue().values()}
    found = {path.name for path in weights_folder().iterdir() if path.name != CATALOGUE}
    assert found == named
    assert {entry.task for entry in read_catalogue().values()} == set(PACKAGED_TASKS)


@pytest.mark.parametrize("name", list(read_catalogue()))
def test_packaged_weights_restore(name: str, tmp_path: Path) -> None:
    """The file is intact and small, its card exists, and it restores with its own timesteps."""
    entry: PackagedWeights = read_catalogue()[name]
    assert checked_file(entry).stat().st_size <= MAX_FILE_BYTES
    assert (ROOT / entry.card).is_file()
    assert entry.scores
    source, out = save(tmp_path / "in.png", random_picture(32, 32)), tmp_path / "out.png"
    made = plan(Request(source, out, name))
    assert made.timesteps == entry.grid
    assert restore(made).run().failure is None
    assert out.is_file()


REAL = {  # a degraded picture, its target, and the minimum gain in dB
    "derain": ("rain100l/rainy/rain-001.png", "rain100l/norain-001.png", 5.0),
    "denoise": (None, "kodak24/kodim05.png", 5.0),
    "deblur": ("levin/input/im1_k1.png", "levin/target/im1_k1.png", 0.6),
}


@pytest.mark.skipif("C2FDFT_TEST_DATA" not in os.environ, reason="needs real pairs")
@pytest.mark.parametrize("name", list(read_catalogue()))
def test_packaged_weights_improve_a_picture(name: str) -> None:
    source, target, gain = REAL[read_catalogue()[name].task]
    folder = Path(os.environ["C2FDFT_TEST_DATA"])
    gt = read_rgb8(folder / target)[60:188, 60:188]
    if source is None:
        noise = np.random.default_rng(0).normal(0, 25, gt.shape)
        lq = (gt + noise).clip(0, 255).round().astype(np.uint8)
    else:
        lq = read_rgb8(folder / source)[60:188, 60:188]
    restored = c2fdft.load(name, device="cpu")(lq)
    assert c2fdft.evaluate(restored, gt).psnr > c2fdft.evaluate(lq, gt).psnr + gain


@pytest.mark.parametrize("name", list(read_catalogue()))
def test_facts_and_catalogue_agree(name: str) -> None:
    facts = json.loads((ROOT / "docs" / "models" / f"{name}.json").read_text(encoding="utf-8"))
    entry = read_catalogue()[name]
    derived = {key: value for key, value in asdict(entry).items() if key in DERIVED}
    assert make_entry(name, derived | facts) == entry


@pytest.mark.parametrize("name", list(read_catalogue()))
def test_card_and_catalogue_agree(name: str) -> None:
    entry = read_catalogue()[name]
    card = (ROOT / entry.card).read_text(encoding="utf-8")
    row = next(line for line in card.splitlines() if line.startswith(f"| `{name}`, "))
    for score in entry.scores:
        assert f"{score.psnr:.2f} / {f'{score.ssim:.3f}'[1:]}" in row
        assert f"{score.input_psnr:.2f} / {f'{score.input_ssim:.3f}'[1:]}" in card
    assert f"{entry.parameters:,} parameters" in " ".join(card.split())
    assert f"{entry.seconds_per_megapixel}" in card


def test_the_licences_of_the_weights_are_installed_with_them() -> None:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "LicenseRef-c2fdft-weights" in about["license"]
    files = [ROOT / name for name in about["license-files"]]
    text = (ROOT / "LICENSE-WEIGHTS.md").read_text(encoding="utf-8")
    entries = read_catalogue(ROOT / "c2fdft_cli" / "weights")
    rows = [f"| `{name}` | {entry.licence} |" for name, entry in entries.items()]
    assert [line for line in text.splitlines() if line.startswith("| `")] == rows
    for name in re.findall(r"docs/models/\w+\.md", text):
        assert ROOT / name in files
    assert ROOT / "LICENSE-WEIGHTS.md" in files
