"""Atomic writes: files are complete or absent after success and after errors."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import filelock
import pytest

from c2fdft_cli import files
from c2fdft_cli.errors import DataError, ResourceError, UsageError
from c2fdft_cli.files import (
    MAX_LEVELS,
    TakenError,
    atomic_path,
    atomic_write_bytes,
    atomic_write_text,
    check_folder,
    ensure_folder,
    hold_folder,
    is_file,
    private_cache_folder,
    read_at,
    read_error,
    read_text,
    require_new,
    same_files,
    walk_folders,
)
from tests.kit.restore import found_under


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def failing(code, filename=None):
    def fail(*_args, **_kwargs):
        raise OSError(code, os.strerror(code), filename)

    return fail


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


def test_a_current_folder_that_may_not_be_entered_is_refused(monkeypatch):
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    with pytest.raises(ResourceError, match="cannot write to the folder"):
        check_folder(Path("out"))


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


def test_ensure_folder_refuses_one_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ResourceError, match="cannot write"):
        ensure_folder(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_is_read_with_and_without_a_byte_order_mark(tmp_path, encoding):
    file = tmp_path / "list.txt"
    file.write_bytes("grüße\r\nb\n".encode(encoding))
    assert read_text(file) == "grüße\r\nb\n"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("a\n".encode("utf-16"), "UTF-16"),
        (b"\xfe\xff" + "a\n".encode("utf-16-be"), "UTF-16"),
        ("a\n".encode("utf-16-le"), "not a text file"),
        (b"ab\xff", "byte 2 of the text is not UTF-8"),
        (b"a" * 1_048_577, "larger than 1048576 bytes"),
    ],
)
def test_text_that_is_not_utf_8_is_refused(tmp_path, data, what):
    file = tmp_path / "list.txt"
    file.write_bytes(data)
    with pytest.raises(DataError, match=what) as caught:
        read_text(file, max_bytes=1 << 20)
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device here")
def test_a_device_is_read_only_up_to_the_limit(tmp_path):
    """A device has no size by which it could be refused."""
    (tmp_path / "list.txt").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="larger than 1048576 bytes"):
        read_text(tmp_path / "list.txt", max_bytes=1 << 20)


def test_bytes_of_another_encoding_are_kept_if_requested(tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes(b"caf\xe9.png")
    assert os.fsencode(read_text(file, errors="surrogateescape")) == b"caf\xe9.png"


def test_a_file_is_absent_only_if_the_system_says_so(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"")
    assert is_file(tmp_path / "a")
    assert not is_file(tmp_path)
    assert not is_file(tmp_path / "b")
    assert not is_file(tmp_path / "a" / "b")
    monkeypatch.setattr(Path, "stat", failing(errno.EIO))
    with pytest.raises(DataError, match="a: cannot read: Input/output error"):
        is_file(tmp_path / "a")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EACCES, "text"), "Permission denied"),
        (OSError("broken data stream"), "broken data stream"),
        (OSError(), "Input/output error"),
    ],
)
def test_the_reason_of_an_unreadable_file_is_the_systems_or_the_librarys(error, reason):
    assert str(read_error(error, "a")) == f"a: cannot read: {reason}"


def test_a_missing_text_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_text(tmp_path / "list.txt")


@pytest.mark.parametrize("name", ["a." + "b" * 240, "ü" * 120 + ".png", "a" * 251 + ".png"])
def test_every_name_that_the_file_system_supports_works(tmp_path, name):
    atomic_write_text(tmp_path / name, "text")
    assert names(tmp_path) == [name]


def test_bytes_are_read_from_anywhere_in_a_file(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    monkeypatch.setattr(files, "_READ_BYTES", 7)  # longer ranges take several calls
    with io.FileIO(tmp_path / "a") as file:
        for start, size in ((0, 100), (50, 7), (99, 1), (10, 0)):
            assert read_at(file, start, size) == bytes(range(start, start + size))
        assert read_at(file, 90, 20) == bytes(range(90, 100))
        assert read_at(file, 200, 5) == b""


def test_bytes_are_read_from_anywhere_without_pread(tmp_path, monkeypatch):
    """As on Windows: the position in the file changes, and threads take turns."""
    (tmp_path / "a").write_bytes(bytes(range(100)))
    monkeypatch.setattr(files, "_READ_BYTES", 7)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "pread", raising=False)
    with io.FileIO(tmp_path / "a") as file, ThreadPoolExecutor(4) as pool:
        parts = pool.map(lambda start: read_at(file, start, 50), [*range(60)] * 5)
        assert list(parts) == [bytes(range(start, min(100, start + 50))) for start in range(60)] * 5


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
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(OSError, match="is not a folder that only its owner can write to"):
        private_cache_folder()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_no_output_file(tmp_path, overwrite):
    with pytest.raises(UsageError, match="the output must be a file"):
        require_new(tmp_path, overwrite)


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


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("OUT", "replace OUT with a path of your own"),
        ("https://example.org/a.png", "download it first"),
        ("out", "check the path"),
    ],
)
def test_the_hint_for_a_path_that_does_not_exist(name, hint):
    error = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    assert read_error(error, name).hint.startswith(hint)


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


@pytest.mark.parametrize(
    ("first", "second"),
    [("in", "IN"), ("stra\u00dfe", "STRASSE"), ("caf\u00e9", "CAFE\u0301"), ("A/in", "a/IN")],
)
def test_a_file_is_recognised_if_its_number_depends_on_the_spelling(
    tmp_path, monkeypatch, first, second
):
    """As on exFAT through FUSE."""
    (tmp_path / first).mkdir(parents=True)
    (tmp_path / first / "a.png").write_text("mine")
    other = found_under(monkeypatch, tmp_path / first, tmp_path / second, same_inode=False)
    assert same_files([other], [tmp_path / first]) == [other]
    assert same_files([other / "a.png", other / "b.png"], [tmp_path / first / "a.png"]) == [
        other / "a.png"
    ]
    assert same_files([tmp_path], [other]) == []


def test_paths_are_resolved_only_if_size_and_times_are_equal(tmp_path, monkeypatch):
    """For an output that exists, in a folder without inputs, this took most of the time."""
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number}.png").write_text(name)
    monkeypatch.setattr(files, "folded", None)
    inputs, outputs = (sorted((tmp_path / name).iterdir()) for name in ("in", "out"))
    assert same_files([*outputs, tmp_path / "out" / "new.png"], inputs) == []
    assert same_files([*outputs, inputs[3]], inputs) == [inputs[3]]


def test_files_whose_names_differ_in_case_are_not_one(tmp_path):
    for name in ("in", "IN"):
        (tmp_path / name).mkdir()
    if len(names(tmp_path)) < 2:
        pytest.skip("this file system does not tell cases apart")
    (tmp_path / "in" / "a.png").write_text("mine")
    (tmp_path / "IN" / "a.png").write_text("yours")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "IN" / "a.png")
    os.utime(tmp_path / "IN", (1, 1))  # one instant for both would make them one
    assert same_files([tmp_path / "IN", tmp_path / "IN" / "a.png"], [tmp_path / "in"]) == []
    assert same_files([tmp_path / "IN" / "a.png"], [tmp_path / "in" / "a.png"]) == []
    assert same_files([tmp_path / "IN" / "a.png"], [tmp_path / "in" / "link.png"]) != []


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


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_a_dangling_link_is_reported_as_such(tmp_path, target):
    (tmp_path / "link").symlink_to(target)
    for refused in (ensure_folder, check_folder):
        for folder in ("link", "link/below"):
            with pytest.raises(ResourceError) as caught:
                refused(tmp_path / folder)
            assert str(tmp_path / "link") in f"{caught.value} {caught.value.hint}"
            assert "regular file" not in str(caught.value)
