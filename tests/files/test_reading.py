"""Reading of text files and of parts of files."""

from __future__ import annotations

import errno
import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from c2fdft_cli.errors import DataError
from c2fdft_cli.files import reading
from c2fdft_cli.files.reading import is_file, read_at, read_text
from tests.kit.files import failing


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
        (b"\0\0\xfe\xff" + "a\n".encode("utf-32-be"), "not a text file"),
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
    file.write_bytes(b"a" * 1_048_576)
    assert len(read_text(file, max_bytes=1 << 20)) == 1 << 20


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


def test_a_missing_text_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_text(tmp_path / "list.txt")


def test_bytes_are_read_from_anywhere_in_a_file(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    monkeypatch.setattr(reading, "_READ_BYTES", 7)  # longer ranges take several calls
    with io.FileIO(tmp_path / "a") as file:
        for start, size in ((0, 100), (50, 7), (99, 1), (10, 0)):
            assert read_at(file, start, size) == bytes(range(start, start + size))
        assert read_at(file, 90, 20) == bytes(range(90, 100))
        assert read_at(file, 200, 5) == b""


def test_bytes_are_read_from_anywhere_without_pread(tmp_path, monkeypatch):
    """As on Windows: the position in the file changes, and threads take turns."""
    (tmp_path / "a").write_bytes(bytes(range(100)))
    monkeypatch.setattr(reading, "_READ_BYTES", 7)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "pread", raising=False)
    with io.FileIO(tmp_path / "a") as file, ThreadPoolExecutor(4) as pool:
        parts = pool.map(lambda start: read_at(file, start, 50), [*range(60)] * 5)
        assert list(parts) == [bytes(range(start, min(100, start + 50))) for start in range(60)] * 5
