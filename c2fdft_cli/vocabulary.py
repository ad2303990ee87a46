"""The values that options and recipes can choose from, each list defined once.

`core` imports only torch, so it cannot import this module: its functions contain the values that
they accept and refuse all others, and the tests call them with every value of the lists here. The
tests also compare these lists with the keys of tables elsewhere (`PRECISIONS` of
`execution.device`, `PROTOCOLS` of `metrics.protocols`).
"""

from __future__ import annotations

import difflib
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from c2fdft_cli.errors import UsageError

Choice = TypeVar("Choice", bound=str)

Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]
Precision: TypeAlias = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
Compile: TypeAlias = Literal["auto", "on", "off"]
NormName: TypeAlias = Literal["with_bias", "bias_free"]
Schedule: TypeAlias = Literal["linear", "quad", "const", "jsd", "sigmoid"]
Spacing: TypeAlias = Literal["linspace", "leading", "trailing"]
Ssim: TypeAlias = Literal["paper", "as_released", "none"]
Recompute: TypeAlias = Literal["none", "call", "level"]
RecomputeSetting: TypeAlias = Literal["auto", Recompute]
WeightSet: TypeAlias = Literal["ema", "raw"]
Tensorboard: TypeAlias = Literal["auto", "true", "false"]
ProtocolName: TypeAlias = Literal[
    "derain", "derain-matlab", "deblur", "denoise", "rgb", "y", "levin"
]
Task: TypeAlias = Literal["derain", "deblur", "denoise", "restore"]
PackagedTask: TypeAlias = Literal["derain", "denoise", "deblur"]
DegradationName: TypeAlias = Literal["rain", "noise", "blur"]

DEVICES: tuple[Device, ...] = get_args(Device)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
COMPILE: tuple[Compile, ...] = get_args(Compile)
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)
PROTOCOL_NAMES: tuple[ProtocolName, ...] = get_args(ProtocolName)
RECOMPUTE: tuple[Recompute, ...] = get_args(Recompute)
PACKAGED_TASKS: tuple[PackagedTask, ...] = get_args(PackagedTask)
DEGRADATIONS: tuple[DegradationName, ...] = get_args(DegradationName)


def many(count: int, noun: str) -> str:
    """Return a number with its noun in singular or plural: 1 image, 2 images."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def binary_size(count: int) -> str:
    """Return a number of bytes in KiB, MiB or GiB."""
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def for_shell(*words: str) -> str:
    """Join words with quotes where a shell needs them, so that they can be pasted into it."""
    if sys.platform == "win32":
        # cmd.exe does not know single quotes, and a backslash is an ordinary character.
        from subprocess import list2cmdline as join
    else:
        from shlex import join
    return join(words)


def one_of(choices: Sequence[str]) -> str:
    """Return choices as words in a sentence: "a", "a or b", "a, b or c"."""
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))


def check_choice(option: str, value: str, choices: Sequence[Choice]) -> Choice:
    """Return the value of an option if it is one of the choices; UsageError otherwise."""
    for choice in choices:
        if choice == value:
            return choice
    hint = did_you_mean(str(value), choices)  # a Python program may pass a value of any type
    raise UsageError(f"{option} must be {one_of(choices)}, got {value!r}", hint=hint)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return "did you mean ...?" with the known word nearest to `word`; None if none is near."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f"did you mean {close[0]}?" if close else None


def split_words(text: str) -> list[str]:
    """Split a list such as "linspace, leading" at its commas and remove spaces."""
    return text.replace(" ", "").split(",")


def parse_numbers(option: str, text: str, example: str, *, ranges: bool = False) -> list[int]:
    """Parse whole numbers such as "999,500", in the order given, each of at most six digits.

    Args:
        option: the name of the option, for the error.
        text: the value of the option.
        example: a valid value, for the error.
        ranges: also read "1-4" as 1, 2, 3, 4.

    Raises:
        UsageError: there is anything else between the commas, or a range runs backwards.
    """
    numbers: list[int] = []
    for word in split_words(text):
        found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", word, re.ASCII)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if low > high or ("-" in word and not ranges):
            kind = "numbers or ranges" if ranges else "whole numbers"
            raise UsageError(
                f"{option} must be {kind} separated by commas, got {text!r}",
                hint=f"for example {option} {example}",
            )
        numbers += range(low, high + 1)
    return numbers


def finite_or_none(value: Any) -> Any:
    """Replace numbers that are not finite, also in dictionaries and lists, by None, for JSON."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = map(finite_or_none, value)
        return list(items) if isinstance(value, list) else tuple(items)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number_in_environment(name: str, default: int, low: int = 0) -> int:
    """Return the whole number, at least `low`, in an environment variable; `default` if not set.

    Raises:
        UsageError: the variable holds anything else.
    """
    text = os.environ.get(name, str(default))
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII) or int(text) < low:
        what = f"environment variable {name} must be a whole number of at least {low}, got {text!r}"
        raise UsageError(what, hint=f"unset {name}")
    return int(text)
