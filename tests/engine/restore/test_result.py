"""Results: the error that the program ends with, and merging those of several processes."""

from __future__ import annotations

import pickle
from pathlib import Path, PurePath

import pytest

from c2fdft_cli.engine.restore.inputs import Source
from c2fdft_cli.engine.restore.result import (
    ImageDone,
    RestoreResult,
    Skipped,
    failed,
    merge,
)
from c2fdft_cli.errors import DataError, PartialFailure, ResourceError
from c2fdft_cli.execution.device import make_runtime
from c2fdft_cli.execution.distributed import gather

ERROR = DataError("cannot read the image", where="b.png")
GOOD = ImageDone("a.png", "out/a.png", 4, 5)
BAD = ImageDone("b.png", None, 0, 0, error=ERROR)
SAME = Skipped("c.png", "out/c.png", None)
STALE = Skipped("d.png", "out/d.png", "made with other settings: seed 0, now 3")


def result(*records: ImageDone | Skipped, single: bool = False) -> RestoreResult:
    images = [one for one in records if isinstance(one, ImageDone)]
    skipped = [one for one in records if isinstance(one, Skipped)]
    return RestoreResult(images, skipped, 1.0, single, Path("out"))


def test_success_has_no_failure() -> None:
    assert result(GOOD).failure is None
    assert result(GOOD, SAME).failure is None
    assert result(SAME, single=True).failure is None
    assert result().failure is None


def test_failed_images_are_listed() -> None:
    failure = result(GOOD, BAD).failure
    assert isinstance(failure, PartialFailure)
    assert str(failure) == "out: 1 of 2 images failed"
    assert failure.hint == "the others are restored"
    assert failure.details == ("b.png: cannot read the image",)


def test_what_to_do_about_failed_images_is_said_once() -> None:
    errors = [
        ResourceError("cannot write the file", where=f"{n}.png", hint="no space") for n in "abc"
    ]
    errors.append(DataError("it is damaged", where="d.png", hint="save it again"))
    bad = [ImageDone(str(error.where), None, 0, 0, error=error) for error in errors]
    failure = result(BAD, *bad).failure
    assert failure is not None
    assert failure.hint == "no space; save it again"
    others = [DataError("damaged", where=f"{n}.png", hint=f"hint {n}") for n in range(5)]
    bad = [ImageDone(str(error.where), None, 0, 0, error=error) for error in others]
    failure = result(*bad).failure
    assert failure is not None
    assert failure.hint == "hint 0; hint 1; hint 2"


def test_a_single_image_ends_with_its_own_error() -> None:
    assert result(BAD, single=True).failure is ERROR
    frames = result(GOOD, BAD, single=True).failure
    assert isinstance(frames, PartialFailure)
    assert str(frames) == "out: 1 of 2 images failed"


@pytest.mark.parametrize("where", [None, "in/b.png"])
def test_a_recorded_error_does_not_keep_the_file_in_memory(where: str | None) -> None:
    """A traceback would hold local variables: the bytes of each damaged file of a folder."""

    def damaged() -> None:
        try:
            raise ValueError("line 3")
        except ValueError as cause:
            hint, details = "save it again", ["line 3"]
            raise DataError("it is damaged", where=where, hint=hint, details=details) from cause

    with pytest.raises(DataError) as raised:
        damaged()
    error = failed(Source(Path("b.png"), PurePath("b.png")), raised.value).error
    assert isinstance(error, DataError)
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
    assert str(error) == f"{where or 'b.png'}: it is damaged"
    assert (error.hint, error.details) == ("save it again", ("line 3",))


def test_files_made_in_another_way_are_named() -> None:
    failure = result(GOOD, SAME, STALE).failure
    assert isinstance(failure, PartialFailure)
    assert (
        str(failure)
        == "out: 1 existing file may differ from what this command makes and was not overwritten"
    )
    assert "--overwrite" in str(failure.hint)
    assert failure.details == ("out/d.png: made with other settings: seed 0, now 3",)


def test_a_single_file_made_in_another_way_is_named() -> None:
    failure = result(STALE, single=True).failure
    assert isinstance(failure, PartialFailure)
    assert failure.details == ("out/d.png: made with other settings: seed 0, now 3",)


def test_failures_and_old_files_are_both_named_and_counted() -> None:
    failure = result(GOOD, BAD, *[STALE] * 25).failure
    assert failure is not None
    assert "1 of 2 images failed, 25 existing files may differ" in str(failure)
    assert len(failure.details) == 26
    assert failure.hint == "the others are restored; use --overwrite to replace existing files"


def test_results_of_several_processes_are_merged() -> None:
    first = result(GOOD)
    second = RestoreResult([BAD], [SAME], 2.5)
    whole = merge([pickle.loads(pickle.dumps(one)) for one in (first, second)])
    assert [image.source for image in whole.images] == ["a.png", "b.png"]
    assert (whole.skipped, whole.seconds, whole.folder) == ([SAME], 2.5, Path("out"))
    assert [str(error) for error in whole.errors] == ["b.png: cannot read the image"]
    assert isinstance(whole.failure, PartialFailure)


def test_one_process_has_nothing_to_gather() -> None:
    one = result(GOOD)
    assert gather(one, make_runtime("cpu", "fp32"), merge) is one
