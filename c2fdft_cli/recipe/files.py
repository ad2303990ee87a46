"""Recipes as files: finding, merging, checking, writing. Every error of a file is told at once."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from c2fdft_cli.errors import RecipeError
from c2fdft_cli.recipe.schema import Recipe, problems

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
        name: "derain", "my/recipe.yaml".
        beside: folder that a relative path is looked for in first.
    """
    for path in (beside / name if beside else None, Path(name)):
        if path is not None and path.is_file():
            return path
    bundled = recipe_names()
    if name in bundled:
        return recipe_folder() / f"{name}.yaml"
    close = difflib.get_close_matches(name, bundled, n=1)
    hint = f"did you mean {close[0]}?" if close else f"give a file, or one of {', '.join(bundled)}"
    raise RecipeError("no such recipe", where=name, hint=hint)


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by name or path, with `key=value` overrides; RecipeError lists all that is wrong."""
    path = find_recipe(name)
    return build_recipe(_merge(_read_extended(path), overrides), where=str(path))


def recipe_from_dict(values: Mapping[str, Any], overrides: Iterable[str], where: str) -> Recipe:
    """A recipe from plain values, such as a checkpoint's, with `key=value` overrides."""
    return build_recipe(_merge(dict(values), overrides), where=where)


def build_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """Check plain values against the schema and turn them into a `Recipe`.

    Args:
        values: nested dictionaries, lists and numbers; keys that are left out keep their default.
        where: what errors name.

    Raises:
        RecipeError: unknown keys (with a suggestion), wrong types, values out of range, all listed.
    """
    found = list(_unknown_keys(values, Recipe, ""))
    config: Any = OmegaConf.structured(Recipe)
    for key, value in _leaves(values, Recipe, ""):
        try:
            config = OmegaConf.merge(config, _nested(key, value))
        except OmegaConfBaseException as error:
            found.append(f"{key}: {str(error).splitlines()[0]}")
    if not found:
        recipe = typing.cast(Recipe, OmegaConf.to_object(config))
        found = problems(recipe)
        if not found:
            return recipe
    what = found[0] if len(found) == 1 else f"{len(found)} problems in this recipe"
    raise RecipeError(
        what,
        where=where,
        hint="`c2fdft recipes show derain` shows every key",
        details=found if len(found) > 1 else (),
    )


def write_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.create(recipe.to_dict()))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping without anchors or interpolations; RecipeError otherwise."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError("too large for a recipe", where=path, hint="name a YAML recipe")
        text = path.read_text(encoding="utf-8")
        # an alias can make a small file unfold into gigabytes
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise RecipeError("anchors and aliases are not allowed", where=path)
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError("cannot read this recipe", where=path, hint=str(error)) from error
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        where = f"{path}{_line_of(error)}"
        raise RecipeError("not a YAML recipe", where=where, hint=_first_line(error)) from error
    if not isinstance(values, dict):
        raise RecipeError("a recipe is a mapping of keys", where=path)
    _refuse_interpolation(values, str(path))
    return typing.cast(dict[str, Any], values)


def _first_line(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _line_of(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f":{mark.line + 1}"


def _read_extended(path: Path) -> dict[str, Any]:
    """The file's values on top of those of the recipe that it extends."""
    chain: list[dict[str, Any]] = []
    seen: list[Path] = []
    following: Path | None = path
    while following is not None:
        if following.resolve() in seen or len(seen) == MAX_EXTENDS:
            raise RecipeError("recipes that extend each other in a circle", where=following)
        seen.append(following.resolve())
        values = read_yaml(following)
        base = values.pop("extends", None)
        if base is not None and not isinstance(base, str):
            raise RecipeError("extends: the name or path of one recipe", where=following)
        chain.append(values)
        following = None if base is None else find_recipe(base, beside=following.parent)
    return functools.reduce(_laid_over, reversed(chain))


def _merge(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Values with `key=value` overrides put in."""
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise RecipeError(
                "an override has the form key=value",
                where=override,
                hint="for example coarse.lr=1e-4",
            )
        try:
            parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"{key.strip()}={text}"]))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise RecipeError("cannot read this override", where=override) from error
        _refuse_interpolation(parsed, override)
        values = _laid_over(values, typing.cast(dict[str, Any], parsed))
    return values


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """The values of both; where both speak, `above` counts.

    Calls that are counted (`sampling.steps`, `.spacing`) take the place of explicit times below
    them, which would win otherwise.
    """
    older, newer = below.get("sampling"), above.get("sampling")
    if isinstance(older, dict) and isinstance(newer, dict) and newer.keys() & {"steps", "spacing"}:
        older = {key: value for key, value in older.items() if key != "grid"}
        below = {**below, "sampling": older}
    merged = OmegaConf.merge(OmegaConf.create(below), OmegaConf.create(above))
    return typing.cast(dict[str, Any], OmegaConf.to_container(merged))


def _refuse_interpolation(values: Any, where: str) -> None:
    if isinstance(values, dict):
        for value in values.values():
            _refuse_interpolation(value, where)
    elif isinstance(values, list):
        for value in values:
            _refuse_interpolation(value, where)
    elif isinstance(values, str) and "${" in values:
        raise RecipeError("interpolations are not allowed", where=where, hint=f"found {values!r}")


def _section(schema: type, key: str) -> type | None:
    """The dataclass of a key that is a section, else None."""
    kind = typing.get_type_hints(schema).get(key)
    return kind if dataclasses.is_dataclass(kind) and isinstance(kind, type) else None


def _nested(key: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} of "a.b"."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return typing.cast(dict[str, Any], value)


def _unknown_keys(values: Mapping[str, Any], schema: type, prefix: str) -> Iterable[str]:
    known = [f.name for f in dataclasses.fields(schema)]
    for key, value in values.items():
        if key not in known:
            close = _elsewhere(str(key), known) or difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(known)}"
            yield f"{prefix}{key}: unknown key; {hint}"
            continue
        section = _section(schema, key)
        if section is not None and isinstance(value, Mapping):
            yield from _unknown_keys(value, section, f"{prefix}{key}.")


def _elsewhere(key: str, known: list[str]) -> list[str]:
    """The name here of a key that other programs call otherwise."""
    return [name for name in [OTHER_NAMES.get(key)] if name in known]


def _leaves(values: Mapping[str, Any], schema: type, prefix: str) -> Iterable[tuple[str, Any]]:
    """The values of known keys, one by one."""
    known = {f.name for f in dataclasses.fields(schema)}
    for key in (key for key in values if key in known):
        value, section = values[key], _section(schema, key)
        if section is not None and isinstance(value, Mapping):
            yield from _leaves(value, section, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
