"""Errors of the parser of command lines, converted to the program's own."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from c2fdft_cli.cli import console
from c2fdft_cli.cli.command_list import COMMANDS, load_command
from c2fdft_cli.errors import UsageError
from c2fdft_cli.vocabulary import PACKAGED_TASKS
from c2fdft_cli.words import did_you_mean, for_shell

_NUMBERS = {
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_parsing": "a number",
}
"""What a value must be, by the type of Pydantic's error."""
_NO_COMMAND = re.compile(r"No such command '(?P<name>.*?)'", re.DOTALL)
_MEANT: dict[str, str] = {
    **{task: f"restore IN OUT --task {task}" for task in PACKAGED_TASKS},
    **dict.fromkeys(("infer", "inference", "predict", "run", "enhance"), "restore IN OUT"),
    **dict.fromkeys(("test", "score", "metrics"), "eval RESTORED TARGET"),
    "train": "train-coarse",
}
"""What users mean by names that are no commands."""
_NOT_A_NUMBER = re.compile(r""": (?P<value>'.*'|".*") is not a valid (?P<kind>int|float)""")
"""The text of Typer before 0.29, which has no Pydantic."""


def convert(error: Any, words: Sequence[str]) -> UsageError:
    """Convert an error of the parser to a UsageError whose hint says how to call the command.

    Args:
        error: an exception of the parser; its class is private to Typer.
        words: the command line, without the program's name.
    """
    context: Any = getattr(error, "ctx", None)
    # An option without its value is noticed before the parser knows which command it belongs to.
    command = context.command_path if context is not None else _command_of(words)
    hint = f"see `{command} --help`"
    unknown = _unknown_option(error, words)
    near = None if unknown is None else _near_option(error, unknown)
    if unknown is not None and os.path.exists(unknown):
        hint = f"for the file of this name, write {for_shell('./' + unknown)}; {hint}"
    elif near is not None:
        hint = f"{near} {hint}"
    elif unknown is not None and _takes_recipe_values(context.command):
        key = unknown.strip("-").partition("=")[0]
        word = f"{key}=VALUE" if "." in key else "KEY=VALUE, such as train.seed=1"
        hint = f"to change a value of the recipe, write {word}; {hint}"
    elif _is_misuse_of_arguments(error):
        order = _required_arguments(context.command)
        hint = f"write {command} {order}; {hint}" if order else hint
    elif context is not None and context.parent is None and words and os.path.exists(words[0]):
        hint = f"name a command first: {console.command('restore', *words)}"
    elif command := _near_command(error):
        hint = f"{command} {hint}"
    return UsageError(_message(error, words), hint=hint)


def _message(error: Any, words: Sequence[str]) -> str:
    """Return what is wrong, with the value that is."""
    lone = _lone_argument(error, words)
    if lone is not None:
        name, value = lone
        return f"{name} is missing: the only argument is {value}"
    # Pydantic's own text names no value.
    problems: list[Any] = getattr(error.__cause__, "errors", list)()
    if problems and problems[0]["type"] in _NUMBERS:
        option = max(error.param.opts, key=len)
        return f"{option} must be {_NUMBERS[problems[0]['type']]}, got {problems[0]['input']!r}"
    if type(error).__name__ == "NoSuchOption":
        return str(error.message)  # without Typer's suggestions, which are often far off
    text = str(error.format_message()).rstrip(".")
    if no_command := _NO_COMMAND.match(text):
        return no_command[0]
    number = _NOT_A_NUMBER.search(text)
    if number is not None:
        kind = _NUMBERS["int_parsing" if number["kind"] == "int" else "float_parsing"]
        return f"{max(error.param.opts, key=len)} must be {kind}, got {number['value']}"
    return text


def _unknown_option(error: Any, words: Sequence[str]) -> str | None:
    """Return the word that the parser took for an option that a command does not have."""
    if type(error).__name__ != "NoSuchOption" or error.ctx is None:
        return None
    name: str = error.option_name
    # For `-task` the parser reports `-t`.
    return next((word for word in words if word.startswith(name)), name)


def _near_option(error: Any, given: str) -> str | None:
    """Return "did you mean --...?" for an option that is misspelled or has one hyphen too few."""
    known = [name for one in error.ctx.command.params for name in one.opts if name[:2] == "--"]
    # Without hyphens, which would make all short names alike.
    near = did_you_mean(given.partition("=")[0].strip("-"), [name[2:] for name in known])
    return near and near.replace("mean ", "mean --")


def _near_command(error: Any) -> str | None:
    """Return "did you mean c2fdft ...?" if a name is not a command, but another name of one."""
    found = _NO_COMMAND.match(str(error.format_message()))
    if found is None or error.ctx is None:
        return None
    name, known = found["name"].lower(), list(error.ctx.command.list_commands(error.ctx))
    if error.ctx.parent is None and name in _MEANT:
        return f"did you mean {error.ctx.command_path} {_MEANT[name]}?"
    near = did_you_mean(name, known)
    return near and near.replace("mean ", f"mean {error.ctx.command_path} ")


def _is_misuse_of_arguments(error: Any) -> bool:
    """Whether an argument is missing, or an unknown option may have been meant for one (`-o OUT`).

    A missing option is something else.
    """
    kind: str = type(error).__name__
    is_missing = kind == "MissingParameter" and error.param.param_type_name == "argument"
    return error.ctx is not None and (is_missing or kind == "NoSuchOption")


def _takes_recipe_values(command: Any) -> bool:
    return any(one.metavar == "KEY=VALUE" and one.nargs == -1 for one in command.params)


def _required_arguments(command: Any) -> str:
    """Return the arguments that a command needs, in their order, such as `IN... OUT`."""
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    return " ".join(
        f"{one.metavar}..." if one.nargs == -1 else str(one.metavar)
        for one in arguments
        if one.required
    )


def _command_of(words: Sequence[str]) -> str:
    """Return the command (and subcommand) that a command line calls, as far as it is known."""
    path, names = ["c2fdft"], [entry.name for entry in COMMANDS]
    for word in words:
        if word not in names:
            break
        path.append(word)
        names = list(getattr(load_command(word), "commands", ())) if len(path) == 2 else []
    return " ".join(path)


def _lone_argument(error: Any, words: Sequence[str]) -> tuple[str, str] | None:
    """Return the name and value of the last argument if it is the only one that was given.

    For `restore photo.jpg` the parser takes the only argument as OUT and reports that IN is
    missing. In fact OUT is missing.
    """
    missing: Any = getattr(error, "param", None)
    if type(error).__name__ != "MissingParameter" or getattr(missing, "nargs", 1) != -1:
        return None
    command = error.ctx.command
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    last = arguments[-1]
    rest = words[len(error.ctx.command_path.split()) - 1 :]
    value = command.make_parser(error.ctx).parse_args(list(rest))[0].get(last.name)
    return (str(last.metavar), value) if isinstance(value, str) else None
