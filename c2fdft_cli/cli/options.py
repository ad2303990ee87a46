"""Turns the settings of a job into the options of a command."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from c2fdft_cli import settings
from c2fdft_cli.errors import UsageError
from c2fdft_cli.settings import Setting, number_in_environment
from c2fdft_cli.vocabulary import DEVICES

Options = TypeVar("Options")


def path_of(text: str) -> Path:
    """Parse a path on the command line; BadParameter for an empty one, which `Path` takes for `.`.

    Otherwise a script whose variable is not set (`--out "$OUT"`) would write to the current folder.
    """
    if not text:
        raise typer.BadParameter("the path is empty; name a file or a folder")
    return Path(text)


def weights_names() -> list[str]:
    """Return the names of the packaged weights."""
    from c2fdft_cli.engine.weights.catalogue import read_catalogue

    return list(read_catalogue())


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the program."""
    from c2fdft_cli.recipe.files import recipe_names

    return recipe_names()


# Typer keeps those that begin with what was typed. Where none does, the shell offers files.
_COMPLETIONS: dict[str | None, Callable[[], list[str]]] = {
    "--weights": weights_names,
    "--recipe": recipe_names,
    "--device": lambda: list(DEVICES),
}


def option(known: Setting, name: str | None = None, *, is_path: bool = False) -> Any:
    """Make a Typer option from a setting."""
    written = known.option or name
    choices = (lambda: list(known.choices)) if known.choices else None
    return typer.Option(
        *filter(None, [written]),
        parser=path_of if is_path else None,
        autocompletion=_COMPLETIONS.get(written, choices),
        metavar=known.metavar or "|".join(known.choices) or None,
        help=known.sentence,
        rich_help_panel=known.panel,
    )


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Overwrite = Annotated[bool, option(settings.OVERWRITE, "--overwrite")]
Weights = Annotated[str | None, option(settings.WEIGHTS, "--weights")]


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take dataclasses of settings: each setting among their fields is an option.

    Args:
        command: a function; each parameter is an ordinary Typer parameter or a dataclass. The
            options are listed in the order of the parameters and of their fields. A field that is
            not a setting and has no default gets the value of the parameter of the same name.

    Returns:
        The function to give to Typer: it makes the dataclasses from the values of the options.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind = inspect.Parameter.KEYWORD_ONLY
        if dataclasses.is_dataclass(hints[name]):
            groups[name] = hints[name]
            parameters += [
                inspect.Parameter(one, kind, default=default, annotation=annotation)
                for one, default, annotation in _options_of(hints[name])
            ]
        else:
            parameters.append(parameter.replace(kind=kind, annotation=hints[name]))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        made: dict[str, Any] = {name: _make(kind, values) for name, kind in groups.items()}
        command(**values, **made)

    del run.__wrapped__  # its annotations are those of the signature, not of the command
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _options_of(kind: type) -> list[tuple[str, Any, Any]]:
    """List the name, default and annotated type of each setting among a dataclass's fields."""
    hints = typing.get_type_hints(kind)
    found = []
    for field in dataclasses.fields(kind):
        known = settings.setting_of(field)
        if known is None:
            continue
        default, of = field.default, hints[field.name]
        if known.several:
            default, of = None, list[str] | None
        elif default is True:
            default = False
        elif known.parse is not None:
            default, of = known.text, str if known.text is not None else str | None
        is_path = of in (Path, Path | None)
        made = option(known, settings.option_name(field), is_path=is_path)
        found.append((field.name, default, Annotated[of, made]))
    return found


def _make(kind: type[Options], values: dict[str, Any]) -> Options:
    """Make a dataclass from the values of its options, which are removed from `values`."""
    made: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        known = settings.setting_of(field)
        if known is None:
            if field.default is field.default_factory is dataclasses.MISSING:
                made[field.name] = values[field.name]
            continue
        value = values.pop(field.name)
        if field.default is True:
            value = not value
        elif known.several:
            value = tuple(known.parse(text) if known.parse else text for text in value or ())
        elif known.parse is not None:
            value = field.default if value is None else known.parse(value)
        made[field.name] = value
    return kind(**made)


def option_words(values: Any, but: Collection[str] = ()) -> list[str]:
    """Convert a dataclass of settings to arguments of a command line, without default values.

    It must have no setting with `several`. The fields named in `but` are omitted.
    """
    words: list[str] = []
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if settings.setting_of(field) is None or field.name in but or value == field.default:
            continue
        words.append(settings.option_name(field))
        if isinstance(value, tuple):
            words.append(",".join(map(str, value)))
        elif not isinstance(value, bool):
            words.append(f"{value:.12g}" if isinstance(value, float) else str(value))
    return words


def refuse_several_processes(command: str) -> None:
    """Raise UsageError if torchrun has started several processes of a single-process command.

    This reads LOCAL_WORLD_SIZE, which only torchrun sets; a cluster may set WORLD_SIZE for any job.
    """
    count = number_in_environment("LOCAL_WORLD_SIZE", 1, low=1)
    if count > 1:
        raise UsageError(
            f"{command} works in one process, and torchrun has started {count}",
            hint=f"start it without torchrun: c2fdft {command} ...",
        )


def weights_file(spec: str, quiet: bool) -> Path:
    """Find the checkpoint of `--weights` or a similar option; CheckpointError if there is none.

    Remarks on the choice are printed unless `quiet`, as with --json.
    """
    from c2fdft_cli.cli import console
    from c2fdft_cli.engine.weights.choose import choose_weights

    found = choose_weights(spec)
    for remark in [] if quiet else found.remarks:
        console.remark(remark)
    return found.path
