"""`c2fdft recipes list|show|copy|validate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.command_list import Command, Group
from c2fdft_cli.cli.options import Json, Overwrite, path_of, recipe_names
from c2fdft_cli.errors import UsageError

recipes = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    help="List, show, copy and check recipes.",
)
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The name of a recipe, or a file.", autocompletion=recipe_names
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values to change.")
]


@recipes.command("list", cls=Command)
def list_recipes(json: Json = False) -> None:
    """List the recipes that come with the program."""
    from c2fdft_cli.recipe.files import load_recipe, recipe_names, recipe_purpose

    rows = []
    for name in recipe_names():
        recipe = load_recipe(name)
        rows.append(
            {
                "name": name,
                "task": recipe.task,
                "purpose": recipe_purpose(name),
                "dim": recipe.network.dim,
                "coarse_iterations": recipe.coarse.iterations,
                "fine_iterations": recipe.fine.iterations,
            }
        )
    if json:
        console.emit(rows)
    else:
        console.table(
            "",
            ["name", "purpose", "dim", "coarse", "fine"],
            [[value for key, value in row.items() if key != "task"] for row in rows],
        )
        console.stdout().print("coarse, fine: iterations of train-coarse and of train-fine")
        console.say_next(console.command("recipes", "show", rows[0]["name"]))


@recipes.command("show", cls=Command)
def show(name: Name, overrides: Overrides = None, json: Json = False) -> None:
    """Print a recipe in full, with the values of the recipes that it extends."""
    from c2fdft_cli.recipe.files import load_recipe, write_recipe

    recipe = load_recipe(name, overrides or [])
    if json:
        console.emit(recipe.to_dict())
    else:
        sys.stdout.write(write_recipe(recipe))


@recipes.command("copy", cls=Command)
def copy(
    name: Name,
    target: Annotated[Path, typer.Argument(parser=path_of, metavar="FILE", help="File to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Copy a recipe in full to a file of your own, to be changed."""
    from c2fdft_cli.files.folders import ensure_folder
    from c2fdft_cli.files.paths import same_files
    from c2fdft_cli.files.writing import atomic_write_text, require_new
    from c2fdft_cli.recipe.files import files_of_recipe, load_recipe, write_recipe

    if str(target) == "-":
        hint = f"print it with {console.command('recipes', 'show', name)}"
        raise UsageError("recipes copy writes a file, not standard output", hint=hint)
    if same_files([target], files_of_recipe(name)):  # comments and `extends` would be lost
        what = "the copy would replace the recipe, or one that it extends"
        raise UsageError(what, where=target, hint="name another file")
    require_new(target, overwrite)
    text = write_recipe(load_recipe(name))
    ensure_folder(target.parent)
    atomic_write_text(target, text)
    console.stdout().print(f"written: {target}")
    console.say_next(console.command("train-coarse", "--recipe", target, "--data", "SHARDS"))


@recipes.command("validate", cls=Command)
def validate(name: Name, overrides: Overrides = None, json: Json = False) -> None:
    """Check a recipe and list every problem."""
    from c2fdft_cli.engine.sampling.pairs import settings_without_effect
    from c2fdft_cli.engine.weights.build import (
        alpha_bar_of_recipe,
        refuse_lost_image,
        timesteps_of_recipe,
    )
    from c2fdft_cli.recipe.files import load_recipe, stated_keys

    recipe = load_recipe(name, overrides or [])
    keys = stated_keys(name, overrides or [])
    notices = settings_without_effect(recipe.data, keys)
    timesteps = timesteps_of_recipe(recipe.sampling, recipe.diffusion)
    refuse_lost_image(timesteps, alpha_bar_of_recipe(recipe.diffusion))
    if not keys:
        notices += ("the file sets nothing, so every key has its default",)
    if json:
        console.emit({"recipe": name, "valid": True, "notices": list(notices)})
        return
    console.stdout().print(f"{name}: valid")
    for notice in notices:
        console.remark(f"note: {notice}")
