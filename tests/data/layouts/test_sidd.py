"""SIDD's blocks: both kinds of MATLAB files, their names, and invalid files."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from c2fdft_cli.data.layouts import matlab, sidd
from c2fdft_cli.data.layouts.sidd import (
    NOISY,
    RESULTS,
    TARGET,
    are_blocks,
    block_files,
    read_blocks,
)
from c2fdft_cli.errors import DataError, ResourceError

io = pytest.importorskip("scipy.io")

SHAPE = (3, 2, 8, 10, 3)


def pixels(shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, Any]:
    return (np.arange(np.prod(shape)) * 7 % 251).astype(np.uint8).reshape(shape)


def matlab5(path: Path, **variables: Any) -> Path:
    io.savemat(path, variables, do_compression=True)
    return path


def matlab73(path: Path, **variables: Any) -> Path:
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            file.create_dataset(name, data=value.T, compression="gzip")
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(128))
    return path


@pytest.mark.parametrize("write", [matlab5, matlab73])
def test_both_kinds_of_files_are_read(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "x.mat", other=np.zeros(3), **{NOISY: pixels()})
    blocks = read_blocks(path, [NOISY])
    assert (blocks.variable, len(blocks)) == (NOISY, 6)
    np.testing.assert_array_equal(blocks.pixels, pixels())
    assert blocks.names[0] == "scene-01_block-01"
    assert blocks.names[5] == "scene-03_block-02"
    np.testing.assert_array_equal(blocks.block(5), pixels()[2, 1])
    assert blocks.block(5).flags.c_contiguous


def test_the_first_existing_variable_is_read(tmp_path: Path) -> None:
    path = matlab5(tmp_path / "x.mat", **{RESULTS: pixels(), TARGET: pixels() // 2})
    assert read_blocks(path, [NOISY, TARGET, RESULTS]).variable == TARGET
    assert read_blocks(path, [RESULTS, TARGET]).variable == RESULTS


def test_the_files_of_a_folder_are_found(tmp_path: Path) -> None:
    assert block_files(tmp_path) == (None, None)
    target = matlab5(tmp_path / f"{TARGET}.mat", **{TARGET: pixels()})
    assert block_files(tmp_path) == (None, target)


@pytest.mark.parametrize("name", [NOISY, TARGET])
def test_blocks_are_recognised_by_the_names_of_their_files(tmp_path: Path, name: str) -> None:
    assert not are_blocks(tmp_path)
    matlab5(tmp_path / f"{name}.mat", **{name: pixels()})
    assert are_blocks(tmp_path)
    assert are_blocks(tmp_path / "x.MAT")
    assert not are_blocks(tmp_path / "x.png")


@pytest.mark.parametrize("write", [matlab5, matlab73])
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"other": pixels()}, f"no variable {NOISY} - it holds 'other'"),
        ({NOISY: pixels((6, 8, 10, 3))}, r"is uint8 \[6, 8, 10, 3\] - it must be uint8 \[scenes"),
        ({NOISY: pixels((2, 2, 8, 10, 4))}, r"\[2, 2, 8, 10, 4\]"),
        ({NOISY: pixels().astype(np.float64)}, r"is (double|float64) \[3, 2, 8, 10, 3\]"),
    ],
)
def test_files_with_other_contents_are_refused(
    tmp_path: Path, write: Any, variables: Any, message: str
) -> None:
    path = write(tmp_path / "x.mat", **variables)
    with pytest.raises(DataError) as caught:
        read_blocks(path, [NOISY])
    assert re.search(message, f"{caught.value} - {caught.value.hint}")


@pytest.mark.parametrize("write", [matlab5, matlab73])
def test_size_is_checked_before_anything_is_loaded(
    tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.mat", **{NOISY: np.zeros((4, 4, 32, 32, 3), np.uint8)})
    monkeypatch.setattr(sidd, "MAX_BYTES", path.stat().st_size + 10)
    monkeypatch.setattr(matlab, "read_uint8", None)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", None)
    with pytest.raises(DataError, match=r"is uint8 \[4, 4, 32, 32, 3\]") as caught:
        read_blocks(path, [NOISY])
    assert caught.value.hint == "it must hold at most 0 MiB"
    monkeypatch.setattr(sidd, "MAX_BYTES", path.stat().st_size - 10)
    with pytest.raises(DataError, match="larger than 0 MiB"):
        read_blocks(path, [NOISY])


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    with pytest.raises(DataError, match="no such file"):
        read_blocks(path, [NOISY])
    for write in (matlab5, matlab73):
        data = write(path, **{NOISY: pixels()}).read_bytes()
        for damaged in (b"", b"text", data[:100], data[: len(data) * 2 // 3]):
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=r"not a MATLAB file, or damaged|no variable"):
                read_blocks(path, [NOISY])


def link(file: h5py.File, folder: Path) -> None:
    file[NOISY] = h5py.ExternalLink(str(folder / "other.mat"), f"/{NOISY}")


def external(file: h5py.File, folder: Path) -> None:
    storage = [(str(folder / "secret.bin"), 0, pixels().size)]
    file.create_dataset(NOISY, SHAPE[::-1], np.uint8, external=storage)


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout(SHAPE[::-1], np.uint8)
    layout[:] = h5py.VirtualSource(str(folder / "other.mat"), NOISY, SHAPE[::-1])
    file.create_virtual_dataset(NOISY, layout)


def huge_chunk(file: h5py.File, _: Path) -> None:
    """A chunk of 2 GB for a few pixels; reading any of them would allocate all of it."""
    chunks, most = (*SHAPE[:0:-1], 2**22), (*SHAPE[:0:-1], None)
    file.create_dataset(NOISY, SHAPE[::-1], np.uint8, chunks=chunks, maxshape=most)


@pytest.mark.parametrize(
    ("store", "says"),
    [
        (link, "no variable"),
        (external, "in other files"),
        (virtual, "in other files"),
        (huge_chunk, "in huge chunks"),
    ],
)
def test_hdf5_whose_pixels_are_not_stored_plainly_is_refused(
    tmp_path: Path, store: Any, says: str
) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(pixels().size))
    matlab73(tmp_path / "other.mat", **{NOISY: pixels()})
    with h5py.File(tmp_path / "x.mat", "w") as file:
        store(file, tmp_path)
    with pytest.raises(DataError, match=says):
        read_blocks(tmp_path / "x.mat", [NOISY])


def test_of_two_variables_of_one_name_the_checked_one_is_read(tmp_path: Path) -> None:
    first = matlab5(tmp_path / "x.mat", **{NOISY: pixels((1, 1, 1, 1, 3))})
    second = matlab5(tmp_path / "y.mat", **{NOISY: pixels()})
    first.write_bytes(first.read_bytes() + second.read_bytes()[128:])
    np.testing.assert_array_equal(read_blocks(first, [NOISY]).pixels, pixels())


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1, 1, 3), (1, 1, 1, 1, 4)])
@pytest.mark.parametrize("compressed", [True, False])
def test_matlab_5_is_read_as_by_scipy(tmp_path: Path, shape: Any, compressed: bool) -> None:
    cells = np.array([1, "x"], object)
    variables = {"n": 3.0, "cells": cells, NOISY: pixels(shape)}
    io.savemat(tmp_path / "x.mat", variables, do_compression=compressed)
    with (tmp_path / "x.mat").open("rb") as file:
        order, found = matlab.variables(file)
        assert [(one.name, one.shape, one.kind) for one in found] == io.whosmat(file.name)
        read = matlab.read_uint8(file, order, found[-1])
    np.testing.assert_array_equal(read, io.loadmat(tmp_path / "x.mat")[NOISY])


@pytest.mark.parametrize("compressed", [True, False])
def test_matlab_5_takes_no_more_memory_than_its_values(tmp_path: Path, compressed: bool) -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 8, 256, 256, 3), np.uint8)
    io.savemat(tmp_path / "x.mat", {NOISY: values}, do_compression=compressed)
    tracemalloc.start()
    read = read_blocks(tmp_path / "x.mat", [NOISY])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < values.nbytes + (6 << 20)
    np.testing.assert_array_equal(read.pixels, values)


def test_a_tag_that_crashes_scipy_is_refused(tmp_path: Path) -> None:
    """The element type is far outside the table: scipy 1.17 reads out of bounds."""
    io.savemat(tmp_path / "x.mat", {NOISY: pixels()})
    data = bytearray((tmp_path / "x.mat").read_bytes())
    at = data.index(pixels().tobytes(order="F")) - 8
    data[at : at + 4] = (1 << 15).to_bytes(4, "little")
    (tmp_path / "x.mat").write_bytes(data)
    with pytest.raises(DataError, match="not a MATLAB file, or damaged"):
        read_blocks(tmp_path / "x.mat", [NOISY])


def test_running_out_of_memory_is_not_reported_as_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    path = matlab5(tmp_path / "x.mat", **{NOISY: pixels()})
    monkeypatch.setattr(matlab, "read_uint8", fail)
    with pytest.raises(ResourceError, match="out of memory reading the file") as caught:
        read_blocks(path, [NOISY])
    assert caught.value.where == str(path)
