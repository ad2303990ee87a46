"""An option of a command, stated once: as a field of the dataclass that its job is asked with.

A field made by `setting` holds its default, its help, its range or its choices. The command line
makes its options of the fields (`cli.options.takes_settings`), and `check_settings` holds the
values of whoever makes the dataclass, a command or a program, to the same limits.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

from c2fdft_cli.errors import UsageError
from c2fdft_cli.vocabulary import DEVICES, PRECISIONS, PROTOCOL_NAMES, check_choice, parse_numbers

_KEY = "setting"


@dataclass(frozen=True)
class Setting:
    """What is known of an option.

    Args:
        help: a sentence; range and default are added to it.
        option: as it is written; None for the field's name with hyphens. Where the default is
            True, the option that makes it False.
        metavar: the placeholder of its value; None for the choices, or the type.
        panel: the heading under which the help lists it.
        low, high: limits, both inclusive.
        choices: the words that it may be.
        parse: makes the field's value of the text on the command line.
        text: the default as it is written there; `setting` knows it.
        several: it may be given repeatedly; the field is a tuple of what `parse` makes of each.
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
        """The help, with the range, and the choices where the placeholder does not show them."""
        text = self.help.rstrip(".")
        if self.range and (self.low, self.high) != (0, None):
            text += f", {self.range}"
        if self.choices and self.metavar:
            text += f": {', '.join(self.choices)}"
        return f"{text}."

    @property
    def range(self) -> str | None:
        """The limits in words: "1 to 100", "at least 0"; None where there are none."""
        if self.low is None:
            return None if self.high is None else f"at most {self.high:g}"
        return f"at least {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}"


def setting(default: Any, known: Setting | str, **more: Any) -> Any:
    """A field of a dataclass that is an option.

    Args:
        default: its value when it is not given; with `parse` the text that is parsed to it.
        known: what is known of it, or its help alone.
        more: further fields of `Setting`, beside the help.
    """
    stated = known if isinstance(known, Setting) else Setting(known, **more)
    parse = stated.parse
    if parse is not None and isinstance(default, str):
        stated, default = replace(stated, text=default), parse(default)
    return field(default=default, metadata={_KEY: stated})


def setting_of(one: Field[Any]) -> Setting | None:
    """What a field was stated as; None for one that is no option."""
    found: Setting | None = one.metadata.get(_KEY)
    return found


def option_name(one: Field[Any]) -> str:
    """The option of a field, as it is written on the command line."""
    stated = setting_of(one)
    return (stated and stated.option) or f"--{one.name.replace('_', '-')}"


def check_settings(options: Any) -> None:
    """Hold each field of a dataclass to its type, limits and choices; None is always allowed.

    NumPy's numbers become Python's: no other can be written into a JSON document.

    Raises:
        UsageError: the first that is outside, by the name of its option.
    """
    hints = typing.get_type_hints(type(options))
    for one in fields(options):
        stated, value = setting_of(one), getattr(options, one.name)
        if stated is None or value is None:
            continue
        # The command line makes values of the right types; a program may hand over any.
        check_type(option_name(one), value, hints[one.name])
        object.__setattr__(options, one.name, _plain(value))
        if stated.choices:
            check_choice(option_name(one), value, stated.choices)
        if stated.range is not None:
            low = float("-inf") if stated.low is None else stated.low
            # Written this way round, NaN is outside of every range.
            if not low <= value <= (float("inf") if stated.high is None else stated.high):
                raise UsageError(f"{option_name(one)} must be {stated.range}, got {value}")


def _plain(value: Any) -> Any:
    """A value with Python's numbers in the place of others."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def check_type(name: str, value: object, hint: Any) -> None:
    """UsageError for a value that is not of a type, such as `int` or `str | None`."""
    if not _is_of(value, hint):
        raise UsageError(f"{name} must be {_in_words(hint)}, got {value!r}")


_TYPES: dict[Any, tuple[type, str]] = {
    int: (Integral, "whole number"),
    float: (Real, "number"),
    str: (str, "text"),
    Mapping: (Mapping, "mapping"),
}
"""What may stand for a type, NumPy's numbers included, and its name in a sentence."""


def _is_of(value: object, hint: Any) -> bool:
    """Whether a value is of a field's type; a bool is no number."""
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_is_of(value, one) for one in of)
    if origin is typing.Literal:  # which words, the choices tell
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
    """A type as the end of "must be ..."."""
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_in_words(one) for one in of if one is not types.NoneType)
    if origin is typing.Literal:
        return "a text"
    if origin is tuple:
        inner = "tuple" if typing.get_origin(of[0]) else _in_words(of[0]).removeprefix("a ")
        return f"a tuple of {inner}s"
    return f"a {_TYPES[hint][1] if hint in _TYPES else hint.__name__}"


def numbers(option: str, example: str) -> Callable[[str], tuple[int, ...]]:
    """A `parse` for whole numbers with commas, as `parse_numbers` reads them."""
    return lambda text: tuple(parse_numbers(option, text, example))


MACHINE = "Machine"
"""Heading of the options that say what is computed on."""

DEVICE = Setting(
    "Device to compute on; cuda:N is GPU number N.",
    metavar="|".join((*DEVICES, "cuda:N")),
    panel=MACHINE,
)
PRECISION = Setting("Floating-point type; auto is bf16 where it is faster.",
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
    "Packaged weights by name (`c2fdft weights list`; ./NAME is the file), or a checkpoint.",
    metavar="NAME|FILE",
)
