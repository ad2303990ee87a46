"""Results: what the program ends with, and several processes' results as one."""

from __future__ import annotations

import pickle
from pathlib import Path

from c2fdft_cli.engine.restore.plan import Skipped
from c2fdft_cli.engine.restore.result import ImageDone, RestoreResult, gather_ranks, merge
from c2fdft_cli.errors import DataError, PartialFailure
from c2fdft_cli.execution.device import make_runtime

GOOD = ImageDone("a.png", "out/a.png", 4, 5)
BAD = ImageDone("b.png", None, 0, 0, error="cannot read the image - b.png")
ERROR = DataError("cannot read the image", where="b.png")


def result(*images: ImageDone, single: bool = False) -> RestoreResult:
    errors = [ERROR for image in images if image.error]
    return RestoreResult(list(images), [], 1.0, list(errors), single, Path("out"))


def test_all_well_ends_with_nothing() -> None:
    assert result(GOOD).failure is None
    assert result().failure is None


def test_some_failed_lists_each() -> None:
    failure = result(GOOD, BAD).failure
    assert isinstance(failure, PartialFailure)
    assert str(failure) == "1 of 2 images failed - out - the others are restored"
    assert failure.details == ("cannot read the image - b.png",)


def test_a_single_image_ends_with_its_own_error() -> None:
    assert result(BAD, single=True).failure is ERROR


def test_the_ranks_results_are_one() -> None:
    first, second = result(GOOD), result(BAD)
    second = RestoreResult(second.images, [Skipped("c", "out/c.png", None)], 2.5, second.errors)
    whole = merge([pickle.loads(pickle.dumps(one)) for one in (first, second)])
    assert whole.images == [GOOD, BAD]
    assert (len(whole.skipped), whole.seconds, whole.folder) == (1, 2.5, Path("out"))
    assert str(whole.errors[0]) == str(ERROR)
    assert isinstance(whole.failure, PartialFailure)


def test_one_process_has_nothing_to_gather() -> None:
    one = result(GOOD)
    assert gather_ranks(one, make_runtime("cpu", "fp32")) is one
