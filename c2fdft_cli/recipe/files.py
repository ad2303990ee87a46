"""Recipes as files: finding, merging, checking, writing; all errors of a file at once."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from c2fdft_cli.errors import DataError, RecipeError
from c2fdft_cli.files import read_text
from c2fdft_cli.recipe.schema import Recipe
from c2fdft_cli.validation import LONG, TOO_LONG, InvalidValuesError, validate
from c2fdft_cli.vocabulary import did_you_mean

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
"""What people may write for a key of a recipe."""
_NOT_YAML = (yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError)
"""What reading YAML raises: ValueError for characters that are none, and impossible dates."""
_NO_TEXT = ("", "null", "~")
"""What takes the text of a key away."""


def recipe_folder() -> Path:
    """The folder of the recipes that come with the program."""
    package = Path(__file__).parents[1]
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the program."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def find_recipe(name: str, beside: Path | None = None) -> Path:
    """The file of a recipe given by path or by name; RecipeError when there is none.

    Args:
        name: "derain", "my/recipe.yaml"; the name of a recipe that comes with the program means
            that one, also where a file is called so (`./derain`).
        beside: folder that a relative path is looked for in first.
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
    """A recipe by name or path, with `key=value` overrides; RecipeError lists all that is wrong."""
    path = find_recipe(name)
    return _overridden(_read_extended(path), overrides, where=str(path))


def recipe_from_dict(values: Mapping[str, Any], overrides: Iterable[str], where: str) -> Recipe:
    """A recipe from plain values, such as a checkpoint's, with `key=value` overrides."""
    return _overridden([dict(values)], overrides, where=where)


def _overridden(layers: Sequence[Values], overrides: Iterable[str], where: str) -> Recipe:
    """The recipe of all layers; errors of overrides name these instead of the file."""
    overrides = list(overrides)
    merged = _merge(layers, overrides)
    try:
        return build_recipe(merged, where)
    except RecipeError as error:
        if not overrides:
            raise
        found = error
    build_recipe(_merge(layers, ()), where)  # where this fails too, the file is to blame
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
        values: nested dictionaries, lists and numbers; keys that are missing keep their default.
        where: the file that errors name.

    Raises:
        RecipeError: unknown keys (with a suggestion), wrong types, values out of range: all listed.
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
    """The resolved recipe as YAML text, to be read again.

    Raises:
        RecipeError: it names a path that is not UTF-8, or one with "${".
    """
    values = recipe.to_dict()
    _check_values(values, None)
    try:
        return OmegaConf.to_yaml(OmegaConf.create(values))
    except UnicodeEncodeError as error:
        raise RecipeError(
            f"a recipe cannot hold the path {error.object!r}, which is not UTF-8",
            hint="name it by a link (ln -s) with another name",
        ) from error


def read_yaml(path: Path) -> Values:
    """A YAML mapping without aliases or interpolations; RecipeError otherwise."""
    try:
        text = read_text(path, max_bytes=MAX_BYTES)
        # an alias can make a small file unfold into gigabytes
        if "*" in text and any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise RecipeError("anchors and aliases are not allowed in a recipe", where=path)
        values = _parse(text)
    except DataError as error:
        raise RecipeError(error.what, where=path, hint=error.hint) from error
    except _NOT_YAML as error:
        where = f"{path}{_line_of(error)}"
        raise RecipeError(
            "this is not a YAML recipe", where=where, hint=_first_line(error)
        ) from error
    if not isinstance(values, dict):
        raise RecipeError("a recipe must be a mapping of keys", where=path)
    _check_values(values, path)
    return typing.cast(Values, values)


@functools.lru_cache(maxsize=16)
def _parse(text: str) -> Any:
    """What YAML text holds; recipes share those that they extend."""
    # Without `resolve`, so interpolations are still text where they are looked for. What is cached
    # is shared: callers copy before they change it.
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))


def _first_line(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _line_of(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f":{mark.line + 1}"


def _read_extended(path: Path) -> list[Values]:
    """The file's values, behind those of the recipes that it extends."""
    chain: list[Values] = []
    seen: list[Path] = []
    following: Path | None = path
    while following is not None:
        if following.resolve() in seen:
            raise RecipeError("recipes extend each other in a circle", where=following)
        if len(seen) == MAX_EXTENDS:
            what = f"more than {MAX_EXTENDS} recipes extend each other"
            raise RecipeError(what, where=following, hint="write their values into fewer files")
        seen.append(following.resolve())
        values = dict(read_yaml(following))
        base = values.pop("extends", None)
        if base is not None and not isinstance(base, str):
            what = f"extends must be the name or path of one recipe, got {base!r}"
            raise RecipeError(what, where=following)
        chain.append(values)
        following = None if base is None else find_recipe(base, beside=following.parent)
    return chain[::-1]


def _merge(layers: Iterable[Values], overrides: Iterable[str]) -> Values:
    """The values of all layers and then of the `key=value` overrides; the last one counts.

    A number of steps (`sampling.steps`, `.spacing`) takes the place of explicit timesteps in the
    layers below it, which would win otherwise.
    """
    merged: Values = {}
    for layer in [*layers, *map(_read_override, overrides)]:
        sampling, below = layer.get("sampling"), merged.get("sampling")
        counts = isinstance(sampling, dict) and sampling.keys() & {"steps", "spacing"}
        if counts and isinstance(below, dict):
            merged["sampling"] = {key: value for key, value in below.items() if key != "grid"}
        merged = _laid_over(merged, layer)
    return merged


def _laid_over(below: Values, above: Values) -> Values:
    """Both mappings as one, section by section; lists are replaced whole."""
    sections = {
        key: _laid_over(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return {**below, **above, **sections}


def override(key: str, value: object) -> str:
    """The `key=value` that stands for a plain value, a path or a number of NumPy's.

    Raises:
        RecipeError: no recipe can hold it.
    """
    value = os.fspath(value) if isinstance(value, Path) else value
    # read as it is written, so that JSON's escapes would stay
    if isinstance(value, str) and key in _text_keys(Recipe):
        return f'{key}="{value}"'
    try:
        return f"{key}={json.dumps(value, default=_plain)}"
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{key} cannot be {value!r}", hint=_first_line(error)) from error


def _plain(value: object) -> object:
    """A path or a number as JSON knows it; TypeError for what is neither."""
    if isinstance(value, Path):
        return os.fspath(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"a value of a recipe is a number, a text or a list, not {type(value)}")


def _read_override(override: str) -> Values:
    """The nested values that "coarse.lr=1e-4" stands for.

    Keys whose type is text take it as it is written, but for quotes around all of it; the values of
    others are YAML.
    """
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not all(key.split(".")):
        raise RecipeError(
            f"an override has the form key=value, got {override!r}",
            hint="for example coarse.lr=1e-4",
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
    except (*_NOT_YAML, IndexError) as error:  # of a key such as "."
        hint = _first_line(error)
        raise RecipeError(f"cannot read the override {override!r}", hint=hint) from error
    return plain


@functools.cache
def _text_keys(section: type, before: str = "") -> frozenset[str]:
    """The keys below a section of a recipe that hold free text, such as paths."""
    found: set[str] = set()
    for name, kind in typing.get_type_hints(section).items():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            found |= _text_keys(kind, f"{before}{name}.")
        elif kind in (str, str | None):
            found.add(before + name)
    return frozenset(found)


def stated(overrides: Iterable[str]) -> Values:
    """The values that `key=value` overrides state, by dotted key, however they are written.

    Raises:
        RecipeError: an override that cannot be read.
    """
    found: Values = {}
    for override in overrides:
        found |= dotted(_read_override(override))
    return found


def dotted(values: Mapping[str, Any], before: str = "") -> Values:
    """The values in nested sections by dotted key, such as "coarse.lr"."""
    found: Values = {}
    for key, value in values.items():
        name = f"{before}{key}"
        found |= dotted(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def _check_values(values: Any, where: Path | None, key: object = "it") -> None:
    """RecipeError for an interpolation, or a number that Python refuses to show, at any depth."""
    if isinstance(values, dict):
        for name, value in values.items():
            _check_values(value, where, name)
    elif isinstance(values, list):
        for value in values:
            _check_values(value, where, key)
    elif isinstance(values, str) and ("${" in values or values == "???"):  # both are OmegaConf's
        what = f"interpolations are not allowed, found {values!r}"
        hint = "write out the value; a path with ${ can be named by a link (ln -s)"
        raise RecipeError(what, where=where, hint=hint)
    elif isinstance(values, int) and abs(values) >= TOO_LONG:
        raise RecipeError(f"{key} is a number {LONG}", where=where)
