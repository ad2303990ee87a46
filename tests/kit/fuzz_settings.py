"""Fuzz targets: recipes, overrides and the values of options."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from c2fdft_cli.engine.prepare.options import parse_mib, parse_validation
from c2fdft_cli.engine.restore.options import (
    SamplingOptions,
    choose_timesteps,
    parse_size,
    parse_timesteps,
)
from c2fdft_cli.engine.sweep.options import parse_rule, parse_spacings, parse_steps
from c2fdft_cli.engine.train.options import parse_minutes
from c2fdft_cli.errors import C2fdftError
from c2fdft_cli.recipe.files import load_recipe, recipe_folder, recipe_from_dict
from tests.kit.fuzz import Target, mutate_bytes
from tests.kit.training import MINI

PIECES = ("null", "~", "1e999", ".inf", ".nan", "-1", "0", "9" * 30, "9" * 400, "9" * 5000, "yes",
          "0x" + "f" * 5000,
          "2026-01-01", "1:30", "0x10", "1_0", "[", "]", "{", "}", "{}", "[]", ": ", "\n  ", "- ",
          "&a", "*a", "<<", "!!python/name:os.system", "!!binary x", "!!set", "${oc.env:HOME}",
          "???", "...", "---\n", "'", '"', "#", "=", ",", "-", "–", "²", "٣", "\\", "\0", "\t",
          "extends: tiny\n", "within:", "dB", "G", "[" * 2000)  # fmt: skip


def mutate_text(rng: random.Random, data: bytes) -> bytes:
    """Damage bytes, or insert pieces of syntax, with or without replacing what was there."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, data)
    mutated = data
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(mutated) + 1)
        until = at + rng.choice((0, 0, 1, 3, 8))
        mutated = mutated[:at] + rng.choice(PIECES).encode() + mutated[until:]
    return mutated


def seeds_of_recipes(_folder: Path) -> list[bytes]:
    """All recipes of the program, and one that extends another."""
    own = [path.read_bytes() for path in sorted(recipe_folder().glob("*.yaml"))]
    lines = (item.partition("=") for item in MINI if item.startswith("train."))
    section = "".join(f"  {key[6:]}: {value}\n" for key, _, value in lines)
    return [*own, f"extends: tiny\ntrain:\n{section}".encode()]


def seeds_of_overrides(_folder: Path) -> list[bytes]:
    """One override per seed."""
    texts = ("data.shards=my folder/x=1", "data.streaks='#a'") * 8
    return [item.encode() for item in (*MINI, *texts, "sampling.steps=4", "coarse={lr: 1}")]


@functools.cache
def _base() -> dict[str, Any]:
    return load_recipe("tiny", MINI).to_dict()


def read_override(path: Path) -> None:
    """Apply one override as the command line passes it on."""
    recipe_from_dict(_base(), [os.fsdecode(path.read_bytes())], "a recipe")


PARSERS: tuple[Callable[[str], object], ...] = (
    parse_steps, parse_spacings, parse_rule, parse_size, parse_minutes, parse_validation, parse_mib,
    lambda text: choose_timesteps(SamplingOptions(grid=parse_timesteps(text)), (999, 500), 1000),
)  # fmt: skip


def seeds_of_options(_folder: Path) -> list[bytes]:
    """Values that at least one of the parsers accepts."""
    text = "1-10 1,2,4-6 999,500 999,750,500,1 linspace,leading within:0.2dB psnr 900M 1.5GiB 6G 90"
    return [*text.encode().split(), b"0.5", b"my/folder"]


def read_option(path: Path) -> None:
    """Parse a value with every parser; raise the last error if all refuse it."""
    text = os.fsdecode(path.read_bytes())
    refused: list[C2fdftError] = []
    for parse in PARSERS:
        try:
            parse(text)
        except C2fdftError as error:
            refused.append(error)
    if len(refused) > len(PARSERS) - 3:  # two parsers accept nearly any text
        raise refused[-1]


TARGETS = [
    Target("recipes", ".yaml", seeds_of_recipes, lambda path: load_recipe(str(path)), mutate_text),
    Target("overrides", ".txt", seeds_of_overrides, read_override, mutate_text),
    Target("options", ".txt", seeds_of_options, read_option, mutate_text),
]
