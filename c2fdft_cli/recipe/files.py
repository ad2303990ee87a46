"""Finds, merges, checks and writes recipe files; reports all errors of a file together."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from c2fdft_cli.errors import DataError, RecipeError
from c2fdft_cli.files.reading import read_text
from c2fdft_cli.recipe.schema import Recipe
from c2fdft_cli.validation import LONG, TOO_LONG, InvalidValuesError, validate
from c2fdft_cli.words import did_you_mean

Values: TypeAlias = dict[str, Any]

MAX_BYTES = 1_000_000
MAX_EXTENDS = 8
OTHER_NAMES = {
    "learning_rate": "lr",
    "epochs": "iterations",
    "steps": "iterations",
    "batch_size": "batches",
    "patch_size": "patches",
    "width": "dim",
    "num_blocks": "blocks",
    "amp": "precision",
    "num_workers": "workers",
    "path": "shards",
}
"""Names that users may know from other programs, mapped to the recipe keys that they mean."""
_NOT_YAML = (yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError)
"""What reading invalid YAML raises; ValueError for invalid characters and impossible dates."""
_NO_TEXT = ("", "null", "~")
"""Values that set a text key to null."""


def recipe_folder() -> Path:
    """Return the folder of the recipes that come with the program."""
    package = Path(__file__).parents[1]
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the program."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def recipe_purpose(name: str) -> str:
    """Return what a recipe of the program is for: the first sentence of its comment."""
    lines = read_text(recipe_folder() / f"{name}.yaml").splitlines()
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line != "#", lines))
    return comment.partition(". ")[0].rstrip(".")


def find_recipe(name: str, beside: Path | None = None) -> Path:
    """Find the file of a recipe by name or path.

    Args:
        name: "derain" or "my/recipe.yaml"; the name of a recipe that comes with the program means
            that recipe even if a file has this name (`./derain` means the file).
        beside: folder in which a relative path is looked up first.

    Raises:
        RecipeError: there is no such recipe.
    """
    bundled = recipe_names()
    if name in bundled:
        return recipe_folder() / f"{name}.yaml"
    for path in (beside / name if beside else None, Path(name)):
        if path is not None and os.path.isfile(path):  # False for names that no file can have
            return path
    hint = did_you_mean(name, bundled) or f"give a file, or one of {', '.join(bundled)}"
    raise RecipeError(f"there is no recipe {name!r}", hint=hint)


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Load a recipe by name or path, with `key=value` overrides; RecipeError lists all problems."""
    path = find_recipe(name)
    layers = [values for _, values in _read_extended(path)]
    return _overridden(layers, overrides, where=str(path))


def files_of_recipe(name: str) -> list[Path]:
    """Return the file of a recipe and those of the recipes that it extends."""
    return [path for path, _ in _read_extended(find_recipe(name))]


def recipe_from_dict(values: Mapping[str, Any], overrides: Iterable[str], where: str) -> Recipe:
    """Make a recipe from plain values, such as a checkpoint's, with `key=value` overrides."""
    return _overridden([dict(values)], overrides, where=where)


def _overridden(layers: Sequence[Values], overrides: Iterable[str], where: str) -> Recipe:
    """Build the recipe of all layers; errors in overrides name the override, not the file."""
    overrides = list(overrides)
    merged = _merge(layers, overrides)
    try:
        return build_recipe(merged, where)
    except RecipeError as error:
        if not overrides:
            raise
        found = error
    build_recipe(_merge(layers, ()), where)  # raises an error for the file if that is wrong itself
    wrong = [one for one in overrides if not _is_valid(_merge(layers, [one]), where)] or overrides
    given = " ".join(one if one.isprintable() else repr(one) for one in wrong)
    raise RecipeError(
        f"{found.what} (given as {given})", hint=found.hint, details=found.details
    ) from found


def _is_valid(values: Values, where: str) -> bool:
    try:
        build_recipe(values, where)
    except RecipeError:
        return False
    return True


def build_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """Check plain values against the schema and turn them into a `Recipe`.

    Args:
        values: nested dictionaries, lists and numbers; missing keys keep their defaults.
        where: the file that errors name.

    Raises:
        RecipeError: unknown keys (with a suggestion), wrong types, values out of range; all of them
            are listed.
    """
    try:
        return validate(Recipe, values, OTHER_NAMES)
    except InvalidValuesError as error:
        found = error.problems
    raise RecipeError(
        found[0] if len(found) == 1 else f"{len(found)} problems in this recipe",
        where=where,
        hint="`c2fdft recipes show derain` shows every key",
        details=found if len(found) > 1 else (),
    )


def write_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML text that can be read again.

    Raises:
        RecipeError: the recipe contains a path that is not UTF-8 or contains "${".
    """
    values = recipe.to_dict()
    _check_values(values, None)
    try:
        return OmegaConf.to_yaml(OmegaConf.create(values))
    except UnicodeEncodeError as error:
        raise RecipeError(
            f"a recipe cannot hold the path {error.object!r}, which is not UTF-8",
            hint="make a symbolic link (ln -s) to it, and use the path of the link",
        ) from error


def read_yaml(path: Path) -> Values:
    """Read a YAML mapping without aliases or interpolations; RecipeError for anything else."""
    try:
        text = read_text(path, max_bytes=MAX_BYTES)
        # aliases can make a small file expand to gigabytes
        if "*" in text and any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise RecipeError("anchors and aliases are not allowed in a recipe", where=path)
        values = _parse(text)
    except DataError as error:
        raise RecipeError(error.what, where=path, hint=error.hint) from error
    except _NOT_YAML as error:
        raise _not_yaml(path, text, error) from error
    if not isinstance(values, dict):
        raise RecipeError("a recipe must be a mapping of keys", where=path)
    _check_values(values, path)
    return typing.cast(Values, values)


@functools.lru_cache(maxsize=16)
def _parse(text: str) -> Any:
    """Parse YAML text, None for a scalar; cached, because several recipes extend the same one."""
    # Without `resolve`, so that interpolations stay text, in which `_check_values` finds them. The
    # cached result is shared: callers copy it before they change it.
    try:
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except OSError:  # OmegaConf's error for a document that is a single number, boolean or set
        return None


def _first_line(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _not_yaml(path: Path, text: str, error: Exception) -> RecipeError:
    """Make the error for text that is not YAML; the hint is the parser's, unless it is a tab."""
    where, hint, mark = str(path), _first_line(error), getattr(error, "problem_mark", None)
    if mark is not None:
        where = f"{path}:{mark.line + 1}"
        line = "".join(text.split("\n")[mark.line : mark.line + 1])  # it may be beyond the end
        if line[mark.column : mark.column + 1] == "\t":
            hint = "replace the tab by spaces"
    return RecipeError("this is not a YAML recipe", where=where, hint=hint)


def _read_extended(path: Path) -> list[tuple[Path, Values]]:
    """Return the recipes that a file extends, base first, then itself: the files, their values."""
    chain: list[tuple[Path, Values]] = []
    seen: list[Path] = []
    following: Path | None = path
    while following is not None:
        if following.resolve() in seen:
            raise RecipeError("these recipes extend each other in a circle", where=following)
        if len(seen) == MAX_EXTENDS:
            what = f"more than {MAX_EXTENDS} recipes extend each other"
            raise RecipeError(what, where=following, hint="merge some of these files")
        seen.append(following.resolve())
        values = dict(read_yaml(following))
        base = values.pop("extends", None)
        if base is not None and not isinstance(base, str):
            what = f"extends must be the name or path of one recipe, got {base!r}"
            raise RecipeError(what, where=following)
        chain.append((following, values))
        following = None if base is None else find_recipe(base, beside=following.parent)
    return chain[::-1]


def _merge(layers: Iterable[Values], overrides: Iterable[str]) -> Values:
    """Merge the values of all layers and then of the `key=value` overrides; the last one wins."""
    # The overrides are one layer: a degradation would otherwise remove its own settings if these
    # are given before it.
    return _stacked([*layers, _stacked(map(_read_override, overrides))])


def _stacked(layers: Iterable[Values]) -> Values:
    merged: Values = {}
    for layer in layers:
        merged = _laid_over(_without_superseded(merged, layer), layer)
    return merged


def _without_superseded(below: Values, above: Values) -> Values:
    """Return the values below without those that have no meaning any more.

    A number of steps (`sampling.steps`, `.spacing`) removes explicit timesteps (`sampling.grid`),
    which would otherwise take precedence. Another degradation (`data.synthesize`) removes the
    settings of the one below (`data.synthesis`), which it may not know, or know in another sense.
    """
    kept = {key: dict(value) for key, value in below.items() if isinstance(value, dict)}
    if _section(above, "sampling").keys() & {"steps", "spacing"}:
        kept.get("sampling", {}).pop("grid", None)
    old, new = (_section(values, "data").get("synthesize") for values in (below, above))
    if None not in (old, new) and old != new:
        kept.get("data", {}).pop("synthesis", None)
    return {**below, **kept}


def _section(values: Values, key: str) -> Values:
    """Return a section of a recipe; an empty one if it is missing or anything else."""
    section = values.get(key)
    return section if isinstance(section, dict) else {}


def _laid_over(below: Values, above: Values) -> Values:
    """Merge two mappings, section by section; `above` wins, and lists are replaced as a whole."""
    sections = {
        key: _laid_over(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return {**below, **above, **sections}


def override(key: str, value: object) -> str:
    """Format a plain value, a path or a NumPy number as a `key=value` override.

    Raises:
        RecipeError: no recipe can contain such a value.
    """
    value = os.fspath(value) if isinstance(value, Path) else value
    # text keys are read literally, so JSON's escapes would become part of the text
    if isinstance(value, str) and key in _text_keys(Recipe):
        return f'{key}="{value}"'
    try:
        return f"{key}={json.dumps(value, default=_plain)}"
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{key} cannot be {value!r}", hint=_first_line(error)) from error


def _plain(value: object) -> object:
    """Convert a path or a number to a type that JSON supports; TypeError for anything else."""
    if isinstance(value, Path):
        return os.fspath(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"a value of a recipe is a number, a text or a list, not {type(value)}")


@functools.lru_cache(maxsize=256)
def _read_override(override: str) -> Values:
    """Return the nested values of an override such as "coarse.lr=6e-4".

    Cached, and therefore shared, as by `_parse`: a command reads its overrides several times.
    Values of text keys are read literally, except that quotes around the whole text are removed;
    other values are YAML.
    """
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not all(key.split(".")):
        raise RecipeError(
            f"an override has the form key=value, got {override!r}",
            hint="for example coarse.lr=6e-4",
        )
    try:
        if key in _text_keys(Recipe) and text not in _NO_TEXT:
            quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
            values = OmegaConf.create()
            OmegaConf.update(values, key, text[1:-1] if quoted else text)
        else:
            values = OmegaConf.from_dotlist([f"{key}={text}"])
        plain = typing.cast(Values, OmegaConf.to_container(values))
        _check_values(plain, None)
    except (*_NOT_YAML, IndexError) as error:  # OmegaConf raises IndexError for the key "["
        hint = _first_line(error)
        raise RecipeError(f"cannot read the override {override!r}", hint=hint) from error
    return plain


@functools.cache
def _text_keys(section: type, before: str = "") -> frozenset[str]:
    """Return the dotted keys below a section of a recipe whose values are free text or paths."""
    found: set[str] = set()
    for name, kind in typing.get_type_hints(section).items():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            found |= _text_keys(kind, f"{before}{name}.")
        elif kind in (str, str | None):
            found.add(before + name)
    return frozenset(found)


def stated(overrides: Iterable[str]) -> Values:
    """Return the values that `key=value` overrides state, by dotted key.

    Raises:
        RecipeError: an override that cannot be read.
    """
    found: Values = {}
    for override in overrides:
        found |= dotted(_read_override(override))
    return found


def stated_keys(name: str | None, overrides: Iterable[str]) -> set[str]:
    """Return the dotted keys that a recipe's own file and overrides state, not what it extends.

    Raises:
        RecipeError: no such recipe, or one of them cannot be read.
    """
    own = {} if name is None else read_yaml(find_recipe(name))
    return dotted(own).keys() | stated(overrides).keys()


def dotted(values: Mapping[str, Any], before: str = "") -> Values:
    """Flatten nested sections to values by dotted key, such as "coarse.lr"."""
    found: Values = {}
    for key, value in values.items():
        name = f"{before}{key}"
        found |= dotted(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def _check_values(values: Any, where: Path | None, key: object = "it") -> None:
    """Raise a RecipeError for an interpolation, or a number too long to print, at any depth."""
    if isinstance(values, dict):
        for name, value in values.items():
            _check_values(value, where, name)
    elif isinstance(values, list):
        for value in values:
            _check_values(value, where, key)
    elif isinstance(values, str) and ("${" in values or values == "???"):  # both are OmegaConf's
        what = f"interpolations are not allowed, found {values!r}"
        hint = "write out the value; for a path that contains ${ use a symbolic link (ln -s)"
        raise RecipeError(what, where=where, hint=hint)
    elif isinstance(values, int) and abs(values) >= TOO_LONG:
        raise RecipeError(f"{key} is a number {LONG}", where=where)
