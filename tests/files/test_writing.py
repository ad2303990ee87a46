"""Atomic writes: files are complete or absent after success and after errors."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

import pytest

from c2fdft_cli.errors import ResourceError, UsageError
from c2fdft_cli.files.writing import (
    TakenError,
    atomic_path,
    atomic_write_bytes,
    atomic_write_text,
    require_new,
)
from tests.kit.files import failing, names


def test_bytes_and_text_round_trip(tmp_path):
    atomic_write_bytes(tmp_path / "a.bin", b"\0\1")
    atomic_write_text(tmp_path / "a.txt", "grüße\n")
    assert (tmp_path / "a.bin").read_bytes() == b"\0\1"
    assert (tmp_path / "a.txt").read_bytes() == "grüße\n".encode()
    assert names(tmp_path) == ["a.bin", "a.txt"]


def test_the_temporary_file_is_hidden_next_to_the_target_with_its_suffix(tmp_path):
    with atomic_path(tmp_path / "shard.h5") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".h5"
        assert temporary.stat().st_size == 0
        assert not (tmp_path / "shard.h5").exists()


def test_a_name_of_the_maximum_length_works(tmp_path):
    atomic_write_bytes(tmp_path / ("x" * 251 + ".png"), b"1")
    assert len(names(tmp_path)[0]) == 255


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_must_be_new_replaces_nothing(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", failing(errno.EPERM))
    target = tmp_path / "a.txt"
    atomic_write_bytes(target, b"new", replace=False)
    assert (target.read_bytes(), names(tmp_path)) == (b"new", ["a.txt"])
    with pytest.raises(TakenError, match=r"a\.txt already exists") as caught:
        atomic_write_bytes(target, b"newer", replace=False)
    assert "--overwrite" in caught.value.hint
    assert (target.read_bytes(), names(tmp_path)) == (b"new", ["a.txt"])
    (tmp_path / "link").symlink_to("nowhere")
    atomic_write_bytes(tmp_path / "link", b"new", replace=False)
    assert not (tmp_path / "link").is_symlink()


def test_a_disk_that_fails_at_the_rename_replaces_nothing(tmp_path, monkeypatch):
    """Without a hard link the rename would replace a file that appears at this moment."""
    monkeypatch.setattr(os, "link", failing(errno.EIO))
    monkeypatch.setattr(os, "replace", failing(errno.EPERM))
    with pytest.raises(ResourceError, match=r"a\.txt: cannot write the file") as caught:
        atomic_write_bytes(tmp_path / "a.txt", b"new", replace=False)
    assert "input/output error" in caught.value.hint
    assert names(tmp_path) == []


def write_half(target, error):
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), OSError("other")])
def test_an_error_keeps_the_old_file_and_leaves_no_temporary_one(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises((type(error), ResourceError)):
        write_half(target, error)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_error_about_another_file_is_not_blamed_on_the_target(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "out.txt"):
        (tmp_path / "missing.txt").read_text()
    assert names(tmp_path) == []


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o020)
    try:
        atomic_write_bytes(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o646


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "fsync", failing(code))
    with pytest.raises(ResourceError, match="the disk is full") as caught:
        atomic_write_bytes(tmp_path / "a.txt", b"data")
    assert caught.value.exit_code == 5
    assert str(tmp_path / "a.txt") in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_sync_is_written_to(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "fsync", failing(code))
    atomic_write_bytes(tmp_path / "a.txt", b"data")
    assert (tmp_path / "a.txt").read_bytes() == b"data"


@pytest.mark.parametrize(
    ("code", "fails"),
    [(errno.EIO, True), (errno.ENOSPC, True), (errno.EINVAL, False), (errno.EBADF, False)],
)
def test_a_disk_that_fails_while_the_folder_is_synced(tmp_path, monkeypatch, code, fails):
    """A file system that cannot sync folders is written to all the same."""

    def sync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(ResourceError, match=r"a\.txt: ") if fails else contextlib.nullcontext():
        atomic_write_bytes(tmp_path / "a.txt", b"data")
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.EACCES, "no permission"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "input/output"),
        (errno.EBUSY, os.strerror(errno.EBUSY)),
    ],
)
def test_other_failures_have_a_hint(tmp_path, monkeypatch, code, hint):
    monkeypatch.setattr(os, "open", failing(code))
    with pytest.raises(ResourceError, match="cannot write") as caught:
        atomic_write_bytes(tmp_path / "a.txt", b"data")
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_missing_folder_a_file_as_folder_and_a_folder_as_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path, hint in [
        (tmp_path / "none" / "a.txt", "does not exist"),
        (tmp_path / "file" / "a.txt", "regular file"),
        (tmp_path / "folder", "a folder has this name"),
    ]:
        with pytest.raises(ResourceError, match="cannot write") as caught:
            atomic_write_bytes(path, b"")
        assert hint in caught.value.hint
    assert names(tmp_path) == ["file", "folder"]
    assert names(tmp_path / "folder") == []


@pytest.mark.parametrize("name", ["a." + "b" * 240, "ü" * 120 + ".png", "a" * 251 + ".png"])
def test_every_name_that_the_file_system_supports_works(tmp_path, name):
    atomic_write_text(tmp_path / name, "text")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_no_output_file(tmp_path, overwrite):
    with pytest.raises(UsageError, match="the output must be a file"):
        require_new(tmp_path, overwrite)


def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path):
    """As root `--out /dev/null --overwrite` could replace the device by a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for target in (pipe, Path(os.devnull), Path("/dev/stdout"), Path("/dev/fd/1")):
        with pytest.raises(ResourceError, match="would replace a device or a pipe"):
            require_new(target, overwrite=True)
    with pytest.raises(ResourceError, match="would replace a device or a pipe"):
        atomic_write_text(pipe, "text")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
