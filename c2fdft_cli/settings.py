"""Options, each defined once, as a field of the dataclass of options that a job takes.

A field made by `setting` holds the option's default, help, range and choices. The command line
turns the fields into options (`cli.options.takes_settings`), and `check_settings` checks the values
against the same limits, whether a command or a Python program made the dataclass. Lists of numbers
in options, and numbers in environment variables, are parsed here too.
"""

from __future__ import annotations

import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

from c2fdft_cli.errors import UsageError
from c2fdft_cli.vocabulary import DEVICES, PRECISIONS, PROTOCOL_NAMES, check_choice

_KEY = "setting"

_MAX_SHOWN = 100
"""Characters of a value that a message quotes; a path is rarely longer."""


@dataclass(frozen=True)
class Setting:
    """The definition of an option.

    Args:
        help: a sentence; the range and the default are added to it.
        option: its name on the command line; None for the field's name with hyphens. If the field's
            default is True, the option sets it to False.
        metavar: the placeholder of its value; None for the choices, or the type.
        panel: the heading under which the help lists it.
        low, high: limits, both inclusive.
        choices: the allowed values.
        parse: converts the text on the command line to the field's value.
        text: the default as text, before `parse`; `setting` fills it in.
        several: the option may be given repeatedly; the field is a tuple of the parsed values.
    """

    help: str
    option: str | None = None
    metavar: str | None = None
    panel: str | None = None
    low: float | None = None
    high: float | None = None
    choices: Sequence[str] = ()
    parse: Callable[[str], Any] | None = None
    text: str | None = None
    several: bool = False

    @property
    def sentence(self) -> str:
        """The help with the range, and with the choices if the placeholder does not show them."""
        text = self.help.rstrip(".")
        if self.range and (self.low, self.high) != (0, None):
            text += f", {self.range}"
        if self.choices and self.metavar:
            text += f": {', '.join(self.choices)}"
        return f"{text}."

    @property
    def range(self) -> str | None:
        """The limits in words, such as "1 to 100" or "at least 0"; None if there are none."""
        if self.low is None:
            return None if self.high is None else f"at most {self.high:g}"
        return f"at least {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}"


def setting(default: Any, known: Setting | str, **more: Any) -> Any:
    """Make a dataclass field that is an option.

    Args:
        default: the value if the option is not given; with `parse`, the text that is parsed to it.
        known: the option's definition, or only its help.
        more: further fields of `Setting`, if `known` is the help.
    """
    stated = known if isinstance(known, Setting) else Setting(known, **more)
    parse = stated.parse
    if parse is not None and isinstance(default, str):
        stated, default = replace(stated, text=default), parse(default)
    return field(default=default, metadata={_KEY: stated})


def setting_of(one: Field[Any]) -> Setting | None:
    """Return the definition of a field's option; None if the field is not an option."""
    found: Setting | None = one.metadata.get(_KEY)
    return found


def option_name(one: Field[Any]) -> str:
    """Return the name of a field's option, as it is written on the command line."""
    stated = setting_of(one)
    return (stated and stated.option) or f"--{one.name.replace('_', '-')}"


def check_settings(options: Any) -> None:
    """Check the type, limits and choices of each field of a dataclass.

    NumPy's numbers are replaced by Python's, because JSON supports only these.

    Raises:
        UsageError: names the option of the first value that is not allowed.
    """
    hints = typing.get_type_hints(type(options))
    for one in fields(options):
        stated, value = setting_of(one), getattr(options, one.name)
        hint = hints[one.name]
        if stated is None or (value is None and types.NoneType in typing.get_args(hint)):
            continue
        # Values from the command line have the right types; a Python program may pass any.
        check_type(option_name(one), value, hint)
        object.__setattr__(options, one.name, _plain(value))
        if stated.choices:
            check_choice(option_name(one), value, stated.choices)
        if stated.range is not None:
            low = float("-inf") if stated.low is None else stated.low
            # Written as `not low <= value <= high`, so that NaN is outside of every range.
            if not low <= value <= (float("inf") if stated.high is None else stated.high):
                raise UsageError(f"{option_name(one)} must be {stated.range}, got {value}")


def _plain(value: Any) -> Any:
    """Replace numbers of other types, such as NumPy's, by Python's; also within tuples."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def check_type(name: str, value: object, hint: Any) -> None:
    """Raise UsageError if a value is not of a type such as `int` or `str | None`."""
    if not _is_of(value, hint):
        raise UsageError(f"{name} must be {_in_words(hint)}, got {shown(value)}")


def shown(value: object) -> str:
    """Return a value as it is quoted in a message: in one line, however long its repr is."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


_TYPES: dict[Any, tuple[type, str]] = {
    int: (Integral, "whole number"),
    float: (Real, "number"),
    str: (str, "text"),
    Mapping: (Mapping, "mapping"),
}
"""For each type the class of the values that are accepted (NumPy's numbers too), and its name."""


def _is_of(value: object, hint: Any) -> bool:
    """Whether a value is of a field's type; a bool does not count as a number."""
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_is_of(value, one) for one in of)
    if origin is typing.Literal:  # `check_choice` checks which text it is
        return isinstance(value, str)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        of = of[:1] * len(value) if of[-1] is Ellipsis else of
        return len(of) == len(value) and all(map(_is_of, value, of))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, _TYPES[hint][0] if hint in _TYPES else hint)


def _in_words(hint: Any) -> str:
    """Describe a type for the end of a sentence "must be ..."."""
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_in_words(one) for one in of if one is not types.NoneType)
    if origin is typing.Literal:
        return "a text"
    if origin is tuple:
        inner = "tuple" if typing.get_origin(of[0]) else _in_words(of[0]).removeprefix("a ")
        return f"a tuple of {inner}s"
    return f"a {_TYPES[hint][1] if hint in _TYPES else hint.__name__}"


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


def numbers(option: str, example: str) -> Callable[[str], tuple[int, ...]]:
    """Make a `parse` function for whole numbers separated by commas (`parse_numbers`)."""
    return lambda text: tuple(parse_numbers(option, text, example))


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


MACHINE = "Machine"
"""The heading of the options about the device, its precision and its memory."""

DEVICE = Setting(
    "Device to compute on; cuda:N is the GPU with index N.",
    metavar="|".join((*DEVICES, "cuda:N")),
    panel=MACHINE,
)
PRECISION = Setting("Floating-point type; auto is bf16 if it is faster.",
                    choices=PRECISIONS, panel=MACHINE)  # fmt: skip
SEED = Setting("Seed of all random numbers.", low=0, metavar="N")
PROTOCOL = Setting(
    "Protocol of the scores (default: the recipe's, or rgb)", metavar="NAME", choices=PROTOCOL_NAMES
)
BORDER = Setting("Pixels to skip on each side.", low=0, metavar="N")
SELF_ENSEMBLE = Setting("Average over 8 flips and rotations (4 for derain).")
OVERWRITE = Setting("Replace existing outputs.")
SHARDS = Setting("Folder of shards made by `c2fdft prepare`.", option="--data", metavar="DIR")
WEIGHTS = Setting(
    "A checkpoint, or the name of packaged weights (`c2fdft weights list`); ./NAME means a file.",
    metavar="NAME|FILE",
)
