"""Folders: created, refused before work begins, and searched; the cache of a user."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from c2fdft_cli.errors import ResourceError
from c2fdft_cli.files.folders import (
    MAX_LEVELS,
    check_folder,
    check_space,
    ensure_folder,
    private_cache_folder,
    walk_folders,
)
from tests.kit.files import names


def test_a_current_folder_that_may_not_be_entered_is_refused(monkeypatch):
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    with pytest.raises(ResourceError, match="cannot write to the folder"):
        check_folder(Path("out"))


def test_ensure_folder_makes_parents_and_accepts_an_existing_one(tmp_path):
    folder = tmp_path / "a" / "b"
    assert ensure_folder(folder) == folder
    assert ensure_folder(str(folder)).is_dir()


def test_ensure_folder_makes_as_many_levels_as_a_path_can_have(tmp_path):
    deepest = ensure_folder(tmp_path / ("d/" * 1100))
    assert deepest.is_dir()
    for folder in (deepest, *deepest.parents[:1099]):  # by hand, as Python's own way fails
        folder.rmdir()


def test_folders_below_the_limit_of_levels_are_refused_not_searched(tmp_path):
    ensure_folder(tmp_path / ("d/" * (MAX_LEVELS + 2)))
    refused = []
    found = [folder for folder, _ in walk_folders(tmp_path, refused.append)]
    assert found == [str(tmp_path / ("d/" * level)) for level in range(MAX_LEVELS + 1)]
    assert [error.filename for error in refused] == [str(tmp_path / ("d/" * (MAX_LEVELS + 1)))]
    assert f"over 256 levels of folders below {tmp_path}" in str(refused[0])


@pytest.mark.parametrize(("flag", "hint"), [("RDONLY", "is read-only"), ("NOSUID", "no perm")])
def test_a_read_only_file_system_differs_from_a_missing_permission(
    tmp_path, monkeypatch, flag, hint
):
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "statvfs", lambda _: Mock(f_flag=getattr(os, f"ST_{flag}")))
    for refused in (ensure_folder, check_folder):
        for folder in (tmp_path, tmp_path / "new" / "below"):
            with pytest.raises(ResourceError, match="cannot write to the folder") as caught:
                refused(folder)
            assert hint in caught.value.hint
    assert names(tmp_path) == []


@pytest.mark.parametrize("below", ["", "out", "out/deep"])
def test_ensure_folder_under_a_regular_file_names_the_file(tmp_path, below):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(
        ResourceError, match="a part of the output path is a regular file"
    ) as caught:
        ensure_folder(tmp_path / "notes.txt" / below)
    assert str(tmp_path / "notes.txt") in caught.value.hint
    assert caught.value.exit_code == 5


def test_ensure_folder_names_a_pipe_as_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        ResourceError, match="a part of the output path is a special file"
    ) as caught:
        ensure_folder(tmp_path / "pipe" / "out")
    assert "is a pipe or a device" in caught.value.hint


@pytest.mark.parametrize("lacking", [os.W_OK, os.X_OK])
def test_ensure_folder_refuses_one_that_cannot_be_written(tmp_path, monkeypatch, lacking):
    """Without permission to search it (x), no file can be created there either."""
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & lacking)
    with pytest.raises(ResourceError, match="cannot write"):
        ensure_folder(tmp_path)


def test_a_disk_is_too_small_from_the_first_byte_that_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Mock(free=(3 << 20) * path.exists()))
    check_space(tmp_path / "not" / "there", 3 << 20)
    with pytest.raises(ResourceError, match=r"3\.0 MiB are needed, 3\.0 MiB are free"):
        check_space(tmp_path / "not" / "there", (3 << 20) + 1)


def test_the_cache_folder_of_windows(tmp_path, monkeypatch):
    """Its permissions are not those of POSIX."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "getuid", raising=False)
    assert private_cache_folder() == tmp_path / "AppData/Local/c2fdft"


@pytest.mark.skipif(sys.platform == "win32", reason="HOME is not the home folder there")
def test_a_cache_folder_is_never_relative(tmp_path, monkeypatch):
    """It would be made in the current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert private_cache_folder() == tmp_path / ".cache/c2fdft"
    monkeypatch.setenv("HOME", "home")
    with pytest.raises(OSError, match="must be an absolute path, got home"):
        private_cache_folder()
    assert names(Path()) == []


def test_a_cache_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    """Code is loaded from it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert private_cache_folder() == tmp_path / "c2fdft"
    for mode in (0o720, 0o702):
        (tmp_path / "c2fdft").chmod(mode)
        with pytest.raises(OSError, match="is not a folder that only its owner can write to"):
            private_cache_folder()
    (tmp_path / "c2fdft").chmod(0o755)
    assert private_cache_folder() == tmp_path / "c2fdft"
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(OSError, match="is not a folder that only its owner can write to"):
        private_cache_folder()


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_a_dangling_link_is_reported_as_such(tmp_path, target):
    (tmp_path / "link").symlink_to(target)
    for refused in (ensure_folder, check_folder):
        for folder in ("link", "link/below"):
            with pytest.raises(ResourceError) as caught:
                refused(tmp_path / folder)
            assert str(tmp_path / "link") in f"{caught.value} {caught.value.hint}"
            assert "regular file" not in str(caught.value)
