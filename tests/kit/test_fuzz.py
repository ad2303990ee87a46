"""The fuzzing harness detects each kind of defect."""

from __future__ import annotations

import os
import random
import sys

import pytest

from c2fdft_cli.errors import DataError
from tests.kit import fuzz

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="it sets limits that only Linux has"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def refuse(path):
    raise DataError("no")


def spin(path):
    while True:
        pass


def two_lines(path):
    raise DataError("one\ntwo")


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (lambda path: path.read_bytes(), "read"),
        (refuse, "refused"),
        (lambda path: {}[path], "KeyError in test_fuzz.py:<lambda>"),
        (spin, "longer than"),
        (two_lines, "error of several lines"),
        (lambda path: os._exit(3), "the process died (3)"),
        (lambda path: bytearray(1 << 34), "MemoryError"),
    ],
)
def test_each_outcome_of_an_input_is_detected(monkeypatch, read, what):
    monkeypatch.setattr(fuzz, "MAX_SECONDS", 0.2)
    target = fuzz.Target("x", ".x", lambda folder: [b"0123456789"], read)
    outcomes = list(fuzz.fuzz(target, 2))
    assert [outcome.number for outcome in outcomes] == [0, 1]
    assert all(outcome.what.startswith(what) for outcome in outcomes)
    assert all(outcome.is_defect() == (what not in ("read", "refused")) for outcome in outcomes)


def test_an_input_is_reproduced_by_its_number():
    target = fuzz.Target("x", ".x", lambda folder: [], refuse)
    made = [fuzz.made_input(target, [bytes(100)], 0, number) for number in range(50)]
    assert made == [fuzz.made_input(target, [bytes(100)], 0, number) for number in range(50)]
    assert len(set(made)) > 30


@pytest.mark.parametrize("data", [b"", b"a", bytes(5000)])
def test_any_bytes_can_be_mutated(data):
    for number in range(300):
        fuzz.mutate_bytes(random.Random(number), data)
