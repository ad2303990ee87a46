"""Names that belong together, and names that only look alike."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from c2fdft_cli.data.layouts.matching import match_names, name_words

KINDS = {"rain", "norain", "clean", "noisy", "gt", "blur"}


def matched(lq, gt):
    found = match_names(
        [PurePosixPath(one) for one in lq], [PurePosixPath(one) for one in gt], KINDS
    )
    return {lq[one]: gt[other] for one, other in found.pairs}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rain-001", ("rain", "001")),
        ("norain001", ("norain", "001")),
        ("0001_NOISY_SRGB_010", ("0001", "noisy", "srgb", "010")),
        ("im1_k10", ("im", "1", "k", "10")),
        ("Größe 3", ("grösse", "3")),
        ("--", ()),
    ],
)
def test_words(name, words):
    assert name_words(name) == words


@pytest.mark.parametrize(
    ("lq", "gt"),
    [
        ("1.png", "1.jpg"),
        ("IMG_1.PNG", "img_1.png"),
        ("rain-001.png", "norain-001.png"),
        ("0_rain.png", "0_clean.png"),
        ("blur_1.png", "gt_1.png"),
        ("0001_NOISY_SRGB_010.PNG", "0001_GT_SRGB_010.PNG"),
        ("901_14.jpg", "901.jpg"),
        ("im10_k1.png", "im10.png"),
        ("a/901_14.jpg", "901.jpg"),
        ("a/1.png", "b/1.png"),
    ],
)
def test_belong_together(lq, gt):
    assert matched([lq], [gt]) == {lq: gt}


@pytest.mark.parametrize(
    ("lq", "gt"),
    [("1.png", "2.png"), ("901.jpg", "901_1.jpg"), ("9011.jpg", "901.jpg"), ("01.png", "1.png")],
)
def test_do_not_belong_together(lq, gt):
    assert matched([lq], [gt]) == {}


def test_the_longest_beginning_wins():
    assert matched(["1_2_3.png"], ["1.png", "1_2.png"]) == {"1_2_3.png": "1_2.png"}


def test_a_stricter_rule_that_matches_anything_excludes_the_looser():
    assert matched(["1.png", "1_2.png"], ["1.png"]) == {"1.png": "1.png"}
    assert matched(["a/1.png", "b/1.png"], ["a/1.png"]) == {"a/1.png": "a/1.png"}


def test_several_partners_make_none_unless_a_suffix_decides():
    assert matched(["1.png"], ["1.jpg", "1.bmp"]) == {}
    assert matched(["1.png"], ["1.jpg", "1.png"]) == {"1.png": "1.png"}


def test_nothing_on_one_side():
    assert matched([], ["1.png"]) == {}
    assert matched(["1.png"], []) == {}
