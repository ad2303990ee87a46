"""Golden checks are never skipped silently; shared folders are made once."""

from __future__ import annotations

import pytest

from tests.kit.sharing import DATA_VARIABLES, MISSING_DATA, check_data, made_once


def test_missing_data_fail_in_ci_and_are_skipped_elsewhere(tmp_path):
    there = dict.fromkeys(DATA_VARIABLES, str(tmp_path))
    check_data({})
    check_data({"CI": "true", **there})
    check_data({"CI": "true", MISSING_DATA: "skip"})
    for environment in ({"CI": "true"}, {MISSING_DATA: "fail"}):
        with pytest.raises(pytest.UsageError, match="C2FDFT_TEST_DATA and C2FDFT_REFERENCE"):
            check_data(environment)
    with pytest.raises(pytest.UsageError, match="C2FDFT_REFERENCE must name"):
        check_data({MISSING_DATA: "fail", **there, "C2FDFT_REFERENCE": str(tmp_path / "none")})
    with pytest.raises(pytest.UsageError, match="must be skip or fail"):
        check_data({MISSING_DATA: "no"})


def test_a_shared_folder_is_made_once_and_again_after_a_failure(tmp_path_factory):
    calls = []

    def make(folder):
        calls.append(folder)
        folder.mkdir()
        (folder / f"{len(calls)}").touch()
        if len(calls) == 1:
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        made_once(tmp_path_factory, "example", make)
    for _ in range(2):
        folder = made_once(tmp_path_factory, "example", make)
        assert [path.name for path in folder.iterdir()] == ["2"]
    assert len(calls) == 2
