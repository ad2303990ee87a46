"""Locks on folders, with and without a file system that has them."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import time

import filelock
import pytest

from c2fdft_cli.errors import ResourceError
from c2fdft_cli.files.locks import hold_folder
from tests.kit.files import failing


def without_flock(monkeypatch):
    """Simulate a file system without flock for this process."""
    fcntl = pytest.importorskip("fcntl")
    if tuple(int(part) for part in filelock.__version__.split(".")[:3]) < (4, 2, 1):
        pytest.skip("before 4.2.1 filelock did not rely on the existence of the lock file")
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOSYS))


@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.parametrize("known", [True, False])
def test_a_folder_is_locked_by_one_process(tmp_path, monkeypatch, known):
    if not known:
        without_flock(monkeypatch)
    with hold_folder(tmp_path, "another process works here"):
        with (
            pytest.raises(ResourceError, match="another process works here") as caught,
            hold_folder(tmp_path, "another process works here"),
        ):
            pass
        here = f"; if process {os.getpid()} on "
        assert (here in caught.value.hint) is not known
        assert caught.value.hint.endswith(f"no longer exists, delete {tmp_path}/.lock") is not known
    with hold_folder(tmp_path, "another process works here"):
        pass


@pytest.mark.parametrize(
    ("code", "works"), [(errno.ENOLCK, True), (errno.ENOSPC, False), (errno.EACCES, False)]
)
def test_a_folder_is_used_unlocked_only_if_its_file_system_has_no_locks(
    tmp_path, monkeypatch, code, works
):
    monkeypatch.setattr(filelock.FileLock, "acquire", failing(code))
    expected = contextlib.nullcontext() if works else pytest.raises(ResourceError)
    with expected, hold_folder(tmp_path, "taken"):
        pass


def test_a_lock_file_of_another_user_is_named(tmp_path, monkeypatch):
    (tmp_path / ".lock").touch()
    refused = failing(errno.EACCES, str(tmp_path / ".lock"))
    monkeypatch.setattr(filelock.FileLock, "acquire", refused)
    with (
        pytest.raises(ResourceError, match=r"\.lock: no permission to write") as caught,
        hold_folder(tmp_path, "taken"),
    ):
        pass
    assert "chmod g+rw" in caught.value.hint


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_lock_of_a_killed_process_without_flock(tmp_path, monkeypatch):
    """A lock of this machine is broken; for one of another machine the hint says what to delete."""
    without_flock(monkeypatch)
    with hold_folder(tmp_path, "taken"):
        mine = (tmp_path / ".lock").read_text()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / ".lock").write_text(mine.replace(str(os.getpid()), str(gone.pid), 1))
    old = time.time() - 3600
    os.utime(tmp_path / ".lock", (old, old))
    with hold_folder(tmp_path, "taken"):
        pass
    (tmp_path / ".lock").write_text("7\nother-node\n")
    with (
        pytest.raises(ResourceError, match="taken") as caught,
        hold_folder(tmp_path, "taken"),
    ):
        pass
    lock = tmp_path / ".lock"
    assert caught.value.hint.endswith(
        f"; if process 7 on other-node no longer exists, delete {lock}"
    )
    lock.unlink()
    with hold_folder(tmp_path, "taken"):
        pass
