"""Numbers, sizes and commands in sentences, and suggestions for misspelled words."""

from __future__ import annotations

import sys

import pytest

from c2fdft_cli.words import binary_size, did_you_mean, first_of, for_shell, many


def test_similar_words_are_suggested() -> None:
    assert did_you_mean("Derian", ["derain", "denoise"]) == "did you mean derain?"
    assert did_you_mean("xyz", ["derain", "denoise"]) is None


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0.0 KiB"), (30_000, "29.3 KiB"), (1 << 20, "1.0 MiB"), (3 << 29, "1.50 GiB")],
)
def test_bytes_are_written_in_the_unit_that_fits(count: int, words: str) -> None:
    assert binary_size(count) == words


@pytest.mark.parametrize(("count", "shown"), [(0, 0), (20, 20), (21, 21), (22, 21), (5000, 21)])
def test_the_first_lines_of_a_list_are_shown(count: int, shown: int) -> None:
    lines = [str(i) for i in range(count)]
    found = first_of(lines)
    assert len(found) == shown
    assert found[:20] == lines[:20]
    if count > shown:
        assert found[20] == f"and {count - 20:,} more (with --json all are listed)"


def test_one_is_singular() -> None:
    assert [many(n, "pair") for n in (0, 1, 2)] == ["0 pairs", "1 pair", "2 pairs"]


@pytest.mark.parametrize(
    ("system", "shown"),
    [
        ("linux", r"c2fdft eval 'a b' 'C:\out' '$HOME'"),
        ("darwin", r"c2fdft eval 'a b' 'C:\out' '$HOME'"),
        ("win32", r'c2fdft eval "a b" C:\out $HOME'),
    ],
)
def test_words_are_quoted_for_the_shells_of_the_system(
    monkeypatch: pytest.MonkeyPatch, system: str, shown: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert for_shell("c2fdft", "eval", "a b", r"C:\out", "$HOME") == shown
