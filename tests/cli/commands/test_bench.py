"""`c2fdft bench`: sizes that do not fit into memory."""

from __future__ import annotations

import pytest

from tests.kit.command import refused

LARGEST = ["--size", "65528", "--batch", "65536"]
"""More bytes than a process can address, so that nothing is allocated on any machine."""


@pytest.mark.parametrize("part", ["forward", "restore", "train-step"])
def test_an_image_that_does_not_fit_into_memory_is_refused(part):
    words = ["bench", part, "--recipe", "tiny", "--device", "cpu", "--repeats", "1", *LARGEST]
    said = refused(*words, code=5, says="does not fit into memory with --size 65528")
    assert part in said


def test_batches_that_do_not_fit_into_memory_are_refused(shard_folder):
    words = ["bench", "loader", "--recipe", "tiny", "--data", shard_folder, "--device", "cpu"]
    refused(*words, *LARGEST, code=5, says="loader does not fit into memory with --size 65528")


def test_a_batch_beyond_any_memory_is_refused():
    refused("bench", "forward", "--batch", "99999999999", code=2, says="--batch must be 1 to 65536")
