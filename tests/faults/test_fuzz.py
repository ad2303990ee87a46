"""A quick share of the mutated files that `recipes/scripts/fuzz.py` tries by the thousand."""

from __future__ import annotations

import sys
from typing import NamedTuple

import pytest

from tests.kit import fuzz_data, fuzz_pictures, fuzz_settings, fuzz_state, fuzz_weights
from tests.kit.fuzz import targets, try_inputs


class Share(NamedTuple):
    """The number of inputs of a target; more than `read` must be read, `refused` be refused."""

    inputs: int = 100
    read: int = 2
    refused: int = 10


SHARES = {
    fuzz_pictures: Share(250, 5, 25),
    fuzz_weights: Share(150, 5, 50),
    **dict.fromkeys((fuzz_data, fuzz_settings, fuzz_state), Share()),
}
TARGETS = [(target, share) for area, share in SHARES.items() for target in area.TARGETS]


@pytest.mark.skipif(sys.platform != "linux", reason="the limits of time and memory are Linux's")
@pytest.mark.parametrize(("target", "share"), TARGETS, ids=[one.name for one, _ in TARGETS])
def test_mutated_files_are_read_or_refused(target, share, tmp_path):
    if target.name == "safetensors":
        pytest.importorskip("safetensors")
    outcomes = list(try_inputs(target, range(share.inputs), tmp_path))
    assert [outcome for outcome in outcomes if outcome.is_defect()] == []
    # mutations that break every file, or none, would test nothing
    kinds = [outcome.what for outcome in outcomes]
    assert kinds.count("read") > share.read
    assert kinds.count("refused") > share.refused


def test_every_registered_target_is_tried():
    assert {target.name for target, _ in TARGETS} == set(targets())
