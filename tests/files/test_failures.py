"""The errors for what cannot be read."""

from __future__ import annotations

import errno
import os

import pytest

from c2fdft_cli.files.failures import read_error


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
