"""Kernels are built once, in a private folder; if that fails, torch's operators run."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from c2fdft_cli.errors import UsageError
from c2fdft_cli.execution.native import library
from c2fdft_cli.execution.native.library import Kernels, kernels_for, kernels_or_reason


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: Kernels) -> Iterator[Path]:
    """An empty cache folder, in a process that has not looked for kernels yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(library.SWITCH, raising=False)
    kernels_or_reason.cache_clear()
    yield tmp_path / "c2fdft"
    kernels_or_reason.cache_clear()


def compiler(folder: Path, script: str) -> Path:
    path = folder / "cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def truncate(path: Path) -> None:
    os.truncate(path, 8192)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def let_others_write(path: Path) -> None:
    path.chmod(0o620)


def link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


@pytest.fixture
def quick_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build without optimisation, which takes seconds; all other tests use optimised kernels."""
    monkeypatch.setattr(library, "_FLAGS", [*library._FLAGS, "-O0"])


@pytest.mark.usefixtures("quick_build")
def test_kernels_are_built_once_in_a_folder_of_the_user(cache: Path) -> None:
    built, where = kernels_or_reason(torch.float32)
    assert built is not None
    assert Path(where).parent == cache
    assert cache.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in cache.iterdir()] == [Path(where).name]
    before = Path(where).stat().st_mtime_ns
    kernels_or_reason.cache_clear()
    assert kernels_or_reason(torch.float32) == (kernels_or_reason(torch.float32)[0], where)
    assert Path(where).stat().st_mtime_ns == before


def test_kernels_can_be_switched_off(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.SWITCH, "off")
    assert kernels_or_reason(torch.float32) == (None, "C2FDFT_NATIVE is off")
    assert not cache.exists()


def test_a_misspelt_switch_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.SWITCH, "disabled")
    with pytest.raises(UsageError, match="C2FDFT_NATIVE must be auto or off, got 'disabled'"):
        kernels_or_reason(torch.float32)


def test_apples_stub_of_a_compiler_is_not_run(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """On a Mac without the command line tools, `cc --version` would open a dialog."""
    ran: list[tuple[str, ...]] = []

    def refused(*command: str) -> bytes:
        ran.append(command)
        raise subprocess.CalledProcessError(2, command)

    monkeypatch.setattr(library.sys, "platform", "darwin")
    monkeypatch.setattr(library.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(library, "_run", refused)
    assert kernels_or_reason(torch.float32) == (None, "/usr/bin/cc cannot build them")
    assert ran == [("xcode-select", "-p")]


def test_without_a_compiler_there_are_no_kernels(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert kernels_or_reason(torch.float32) == (None, "no C compiler (cc, gcc, clang)")


@pytest.mark.parametrize(
    "script",
    ["exit 1", '[ "$1" = --version ] || exit 1', '[ "$1" = --version ] || kill -9 $$'],
)
def test_a_compiler_that_fails_is_reported(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    broken = compiler(tmp_path, script)
    monkeypatch.setattr(library.shutil, "which", lambda name: str(broken))
    assert kernels_or_reason(torch.float32) == (None, f"{broken} cannot build them")
    assert list(cache.iterdir()) == []


def test_a_compiler_that_writes_no_library_is_reported(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = 'while [ "$1" ]; do [ "$1" = -o ] && echo nonsense > "$2"; shift; done'
    broken = compiler(tmp_path, script)
    monkeypatch.setattr(library.shutil, "which", lambda name: str(broken))
    built, reason = kernels_or_reason(torch.float32)
    assert built is None
    assert str(cache) in reason


def test_a_library_without_the_functions_is_reported(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "kernels.c").touch()
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    built, reason = kernels_or_reason(torch.float32)
    assert built is None
    assert reason.endswith(".so has no function packed_floats")


def test_a_full_disk_is_reported(
    builds: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    built, reason = kernels_or_reason(torch.float32)
    assert built is None
    assert reason.endswith(".so: the disk is full")
    assert list(cache.iterdir()) == []


@pytest.fixture
def builds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The libraries that a compiler has written; they contain no functions."""
    written: list[str] = []

    def run(*command: str) -> bytes:
        if "-o" in command:
            written.append(command[-1])
            Path(command[-1]).write_bytes(bytes(range(256)) * 64)
        return b"compiler 1.0"

    monkeypatch.setattr(library, "_run", run)
    return written


@pytest.mark.parametrize("harm", [truncate, empty, flip, let_others_write, link])
def test_a_library_that_was_damaged_is_built_again(
    builds: list[str], harm: Callable[[Path], None]
) -> None:
    """Loading a truncated one would end the process."""
    path = library._find_or_build("cc", torch.float32)
    good = path.read_bytes()
    assert library._find_or_build("cc", torch.float32) == path
    assert len(builds) == 1
    harm(path)
    assert library._find_or_build("cc", torch.float32) == path
    assert len(builds) == 2
    assert path.read_bytes() == good
    assert not path.is_symlink()
    assert not path.stat().st_mode & 0o022


def test_others_cannot_write_to_a_library_whatever_the_umask(builds: list[str]) -> None:
    before = os.umask(0)
    try:
        path = library._find_or_build("cc", torch.float32)
    finally:
        os.umask(before)
    assert not path.stat().st_mode & 0o022
    assert library._find_or_build("cc", torch.float32) == path
    assert len(builds) == 1


def test_a_killed_build_leaves_nothing_in_the_cache(builds: list[str], cache: Path) -> None:
    library._find_or_build("cc", torch.float32)
    assert cache not in Path(builds[0]).parents


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_nothing_is_loaded_from_a_folder_that_others_can_write(cache: Path, mode: int) -> None:
    cache.mkdir()
    cache.chmod(mode)
    reason = f"{cache} is not a folder that only its owner can write to"
    assert kernels_or_reason(torch.float32) == (None, reason)


def test_nothing_is_loaded_through_a_symbolic_link(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache.symlink_to(tmp_path / "elsewhere")
    assert kernels_or_reason(torch.float32)[0] is None


def test_a_cache_folder_that_cannot_be_made_is_reported(cache: Path) -> None:
    cache.write_text("a file")
    assert kernels_or_reason(torch.float32)[0] is None


def test_other_flags_and_another_processor_have_another_library(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = library._fingerprint("cc", ["-O3"])
    assert library._fingerprint("cc", ["-O3", "-DHALF"]) != one
    monkeypatch.setattr(library, "_processor", lambda: "another")
    assert library._fingerprint("cc", ["-O3"]) != one


def test_kernels_have_the_precision_that_is_asked_for(both_kernels: Kernels) -> None:
    dtype = both_kernels.dtype
    found = kernels_for(torch.device("cpu"), dtype)
    assert found is not None  # another object than the fixture's, if a test has built them again
    assert found.dtype == dtype
    assert kernels_for(torch.device("cpu"), torch.float16) is None
    assert kernels_for(torch.device("meta"), dtype) is None


@pytest.mark.parametrize(
    ("instructions", "reason"),
    [
        ((False, False), library.NO_BF16),
        ((False, True), library.NO_BF16),
        ((True, True), library.AMX),
    ],
)
def test_without_bf16_instructions_or_with_amx_torch_multiplies_in_bf16(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    instructions: tuple[bool, bool],
    reason: str,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions[0])
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: instructions[1])
    assert kernels_or_reason(torch.bfloat16) == (None, reason)
    assert not cache.exists()


@pytest.mark.usefixtures("quick_build")
def test_a_compiler_that_does_not_know_bf16_cannot_build_them(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(library, "_FLAGS", [f for f in library._FLAGS if "march" not in f])
    built, reason = kernels_or_reason(torch.bfloat16)
    assert built is None
    assert reason.endswith("cannot build them")
    assert kernels_or_reason(torch.float32)[0] is not None


@pytest.mark.acceptance
def test_two_processes_may_build_at_once(cache: Path) -> None:
    code = (
        "from c2fdft_cli.execution.native.library import *; "
        "print(kernels_or_reason(torch.float32)[1])"
    )
    command = [os.sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in both}
    assert [str(path) for path in cache.iterdir()] == list(paths)
