"""Matching of file names that belong together, and not of those that only look alike."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import PurePosixPath

import pytest

from c2fdft_cli.data.layouts import matching
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
def test_names_are_split_into_words(name, words):
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
def test_names_that_belong_together_match(lq, gt):
    assert matched([lq], [gt]) == {lq: gt}


@pytest.mark.parametrize(
    ("lq", "gt"),
    [("1.png", "2.png"), ("901.jpg", "901_1.jpg"), ("9011.jpg", "901.jpg"), ("01.png", "1.png")],
)
def test_names_that_only_look_alike_do_not_match(lq, gt):
    assert matched([lq], [gt]) == {}


def test_the_longest_common_prefix_wins():
    assert matched(["1_2_3.png"], ["1.png", "1_2.png"]) == {"1_2_3.png": "1_2.png"}


def test_if_a_stricter_rule_matches_looser_ones_are_not_used():
    assert matched(["1.png", "1_2.png"], ["1.png"]) == {"1.png": "1.png"}
    assert matched(["a/1.png", "b/1.png"], ["a/1.png"]) == {"a/1.png": "a/1.png"}


def test_several_partners_match_only_if_a_suffix_decides():
    assert matched(["1.png"], ["1.jpg", "1.bmp"]) == {}
    assert matched(["1.png"], ["1.jpg", "1.png"]) == {"1.png": "1.png"}
    assert matched(["rain-1.png"], ["norain-1.jpg", "norain-1.png"]) == {
        "rain-1.png": "norain-1.png"
    }


def test_an_empty_side_has_no_matches():
    assert matched([], ["1.png"]) == {}
    assert matched(["1.png"], []) == {}


def test_two_conventions_of_whole_names_are_both_matched():
    lq = ["a.png", *(f"rain-{n}.png" for n in range(5))]
    gt = ["a.png", *(f"norain-{n}.png" for n in range(5))]
    assert matched(lq, gt) == dict(zip(lq, gt, strict=True))


def test_files_that_match_by_their_whole_names_are_no_partners_of_others():
    lq, gt = ["a.png", "rain-a.png"], ["a.png", "norain-a.png"]
    assert matched(lq, gt) == dict(zip(lq, gt, strict=True))


@pytest.mark.parametrize(
    ("lq", "gt"),
    [
        (["2.png", "1_2.png"], ["2.png", "1.png"]),  # is it a variant, or are two files missing?
        (["A/1.png", "B/1.png"], ["A/1.png", "C/1.png"]),
        (["901_1.png", "x/901_2.png"], ["901.png", "y/901.png"]),
    ],
)
def test_matches_of_a_looser_rule_alone_are_doubtful(lq, gt):
    found = match_names(
        [PurePosixPath(one) for one in lq], [PurePosixPath(one) for one in gt], KINDS
    )
    assert (found.pairs, found.doubtful) == ([(0, 0)], [(1, 1)])
    assert 1 in found.lq_reasons


@pytest.mark.parametrize("names", [("é.png", "é.png"), ("rain_Ü.png", "Ü_clean.png")])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_match_composed_and_decomposed(names, form):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    lq, gt = unicodedata.normalize(form, names[0]), unicodedata.normalize(other, names[1])
    assert matched([lq], [gt]) == {lq: gt}
    assert matched([f"{lq}/1.png"], [f"{gt}/1.png"]) == {f"{lq}/1.png": f"{gt}/1.png"}


def test_the_same_spelling_decides_between_composed_and_decomposed():
    both = [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    assert matched(both, both) == {name: name for name in both}


def lines_executed(clips):
    """Count the lines of the module that are executed to match ten frames of each clip."""
    frames = [(clip, frame) for clip in range(clips) for frame in range(10)]
    lq = [PurePosixPath(f"{clip}_blur/{frame}.png") for clip, frame in frames]
    gt = [PurePosixPath(f"{clip}_sharp/{frame}.png") for clip, frame in frames]
    count, before = 0, sys.gettrace()

    def trace(frame, event, _):
        nonlocal count
        count += event == "line"
        return trace if frame.f_code.co_filename == matching.__file__ else None

    sys.settrace(trace)
    try:
        assert not match_names(lq, gt, KINDS).pairs
    finally:
        sys.settrace(before)
    return count


def test_the_work_is_proportional_to_the_number_of_files_even_if_all_names_occur_in_each_folder():
    assert lines_executed(40) < 4.2 * lines_executed(10)
