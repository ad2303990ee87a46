"""Some of the mutated files that `recipes/scripts/fuzz.py` tries by the thousand."""

from __future__ import annotations

import sys

import pytest

from tests.kit import fuzz_data, fuzz_settings, fuzz_state
from tests.kit.fuzz import try_inputs

TARGETS = (*fuzz_data.TARGETS, *fuzz_settings.TARGETS, *fuzz_state.TARGETS)


@pytest.mark.skipif(sys.platform != "linux", reason="the limits of time and memory are Linux's")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_mutated_files_are_read_or_refused(target, tmp_path):
    outcomes = list(try_inputs(target, range(200), tmp_path))
    assert [outcome for outcome in outcomes if outcome.is_defect()] == []
    # a harness that breaks everything, or nothing, would find nothing
    kinds = [outcome.what for outcome in outcomes]
    assert kinds.count("read") > 5
    assert kinds.count("refused") > 20
