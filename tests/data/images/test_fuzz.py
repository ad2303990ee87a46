"""Some hundred mutated pictures: each is read or refused. `recipes/scripts/fuzz.py` tries more."""

from __future__ import annotations

import sys

import pytest

from tests.kit.fuzz import try_inputs
from tests.kit.fuzz_pictures import TARGETS


@pytest.mark.skipif(sys.platform != "linux", reason="the limits of time and memory are Linux's")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_mutated_files_are_read_or_refused(target, tmp_path):
    outcomes = list(try_inputs(target, range(500), tmp_path))
    assert [outcome for outcome in outcomes if outcome.is_defect()] == []
    # a harness that breaks everything, or nothing, would find nothing
    kinds = [outcome.what for outcome in outcomes]
    assert kinds.count("read") > 10
    assert kinds.count("refused") > 50
