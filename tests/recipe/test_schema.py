"""Recipes: released numbers, merging, overrides, and every kind of mistake."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import fields, is_dataclass, replace
from inspect import signature
from pathlib import Path

import numpy as np
import pytest

import c2fdft_cli
from c2fdft_cli.core.network import DFT
from c2fdft_cli.errors import RecipeError
from c2fdft_cli.recipe.files import (
    find_recipe,
    load_recipe,
    override,
    read_yaml,
    recipe_from_dict,
    recipe_names,
    stated,
    write_recipe,
)
from c2fdft_cli.recipe.schema import Network, Period, Recipe, Sampling, schema
from tests.kit.networks import NETWORKS, SECTION, SMALL

RELEASED = {
    # iterations in thousands, patches, batch per GPU, switch, cycles, lr, periods, mixup
    "derain.coarse": (270, (32, 64, 128), (360, 96, 24), 10, 9, 3e-4,
                      ((50, 3e-4), (220, 1e-5)), None),
    "derain.fine": (90, (32, 64, 128), (96, 24, 6), 5, 6, 1e-5, ((10, 1e-5), (80, 1e-7)), None),
    "deblur.coarse": (330, (64, 128, 256), (96, 24, 6), 10, 9, 3e-4,
                      ((50, 3e-4), (280, 1e-5)), 1.2),
    "deblur.fine": (30, (64, 128, 256), (24, 6, 1), 5, 2, 4e-5, ((10, 4e-5), (20, 1e-6)), 1.2),
    "denoise.coarse": (270, (64, 128, 256), (96, 24, 6), 10, 9, 3e-4,
                       ((50, 3e-4), (220, 1e-5)), 1.2),
    "denoise.fine": (90, (64, 128, 256), (24, 6, 1), 5, 6, 4e-5, ((10, 4e-5), (80, 1e-6)), 1.2),
}  # fmt: skip


def test_every_recipe_is_installed():
    root = Path(__file__).parents[2]
    build = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    assert build["build"]["targets"]["wheel"]["force-include"] == {
        f"recipes/{path.name}": f"c2fdft_cli/_recipes/{path.name}"
        for path in (root / "recipes").glob("*.yaml")
    }


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_schedules_equal_the_released_ones(name):
    recipe, stage = name.split(".")
    section = getattr(load_recipe(recipe), stage)
    thousand, patches, per_gpu, switch, cycles, lr, periods, mixup = RELEASED[name]
    assert section.iterations == thousand * 1000
    assert tuple(section.patches) == patches
    assert tuple(section.batches) == tuple(2 * b for b in per_gpu)
    assert (section.switch_every, section.cycles) == (switch * 1000, cycles)
    assert section.lr == lr
    assert [(p.length, p.floor) for p in section.periods] == [(n * 1000, f) for n, f in periods]
    assert section.mixup_beta == mixup


def test_settings_equal_the_released_ones():
    for name, norm in (("derain", "with_bias"), ("deblur", "with_bias"), ("denoise", "bias_free")):
        recipe = load_recipe(name)
        assert recipe.network.norm == norm
        assert (recipe.network.dim, recipe.network.blocks) == (48, [4, 6, 6, 8])
        assert (recipe.train.seed, recipe.train.weight_decay) == (100, 1e-4)
        assert recipe.train.ema_decay == 0.999
        assert (recipe.fine.ssim, recipe.fine.ssim_weight, recipe.fine.l1_weight) == (
            "paper", 0.84, 0.16)  # fmt: skip


def test_the_defaults_are_the_recipe_of_deraining():
    assert load_recipe("derain", ["train.protocol=rgb"]) == Recipe()


def test_patch_cycles_equal_the_released_ones(misc):
    from c2fdft_cli.engine.train.batches import patch_cycle

    for name, numbers in misc["patch_cycle"].items():
        recipe, stage = name.split("_")
        cycle = patch_cycle(getattr(load_recipe(recipe), stage))
        for iteration, (patch, per_gpu) in numbers.items():
            assert cycle.size_at(int(iteration)) == (patch, 2 * per_gpu)


def test_every_recipe_of_the_program_is_valid():
    assert {"derain", "deblur", "denoise", "tiny"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe_from_dict(recipe.to_dict(), [], where=name) == recipe


def test_a_written_recipe_is_read_back_equal(tmp_path):
    recipe = load_recipe("tiny", ["sampling.grid=[999,500]"])
    path = tmp_path / "mine.yaml"
    path.write_text(write_recipe(recipe))
    assert load_recipe(str(path)) == recipe


def test_a_recipe_extends_a_file_in_its_folder(tmp_path, monkeypatch):
    """Even if the current folder has a file of that name, too."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "base.yaml").write_text("extends: derain\n")
    monkeypatch.chdir(elsewhere)
    (tmp_path / "base.yaml").write_text(
        "extends: tiny\ncoarse: {lr: 0.5, periods: [{length: 9, floor: 0.1}]}\n"
    )
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\ncoarse: {iterations: 9}\n")
    recipe = load_recipe(str(tmp_path / "mine.yaml"), ["coarse.lr=0.25"])
    assert (recipe.coarse.iterations, recipe.coarse.lr, recipe.network.dim) == (9, 0.25, 16)


@pytest.mark.parametrize(
    ("overrides", "grid"),
    [
        ([], [500]),
        (["sampling.eta=0.5"], [500]),
        (["sampling.steps=4"], None),
        (["sampling.spacing=leading"], None),
        (["sampling.steps=2", "sampling.grid=[999,500]"], [999, 500]),
        (["sampling.grid=[999,500]", "sampling.steps=2"], None),
    ],
)
def test_a_number_of_steps_replaces_timesteps(tmp_path, overrides, grid):
    assert load_recipe("derain-small", overrides).sampling.grid == grid
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: derain-small\nsampling: {steps: 3}\n")
    assert load_recipe(str(mine), []).sampling == Sampling(steps=3)


@pytest.mark.parametrize(
    ("changes", "synthesis"),
    [
        ("", {"kind": "raw", "sigma": 5}),
        ("data: {synthesize: noise, synthesis: {sigma: 9}}", {"kind": "raw", "sigma": 9}),
        ("data: {synthesize: null}", {"kind": "raw", "sigma": 5}),
        ("data: {synthesize: rain}", {}),
        ("data: {synthesize: rain, synthesis: {heavy: 1}}", {"heavy": 1}),
    ],
)
def test_another_degradation_replaces_the_settings_of_the_former(tmp_path, changes, synthesis):
    base = "extends: tiny\ndata: {synthesize: noise, synthesis: {kind: raw, sigma: 5}}\n"
    (tmp_path / "base.yaml").write_text(base)
    (tmp_path / "mine.yaml").write_text(f"extends: base.yaml\n{changes}\n")
    assert load_recipe(str(tmp_path / "mine.yaml")).data.synthesis == synthesis


def test_a_degradation_and_its_settings_may_be_given_in_any_order():
    size = "data.synthesis.size=9"
    for blur in ("data.synthesize=blur", "data={synthesize: blur, workers: 0}"):
        for overrides in ([size, blur], [blur, size]):
            assert load_recipe("denoise-small", overrides).data.synthesis == {"size": 9}
    assert load_recipe("denoise-small", ["data.synthesize=blur"]).data.synthesis == {}


def test_an_unknown_key_has_a_suggestion():
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny", ["coarse.learning_rat=1", "coarse.batchs=[1]"])
    told = " ".join(caught.value.details)
    assert "unknown key coarse.learning_rat; " in told
    assert "did you mean coarse.batches?" in told
    assert caught.value.exit_code == 2


def test_names_of_other_programs_are_understood():
    with pytest.raises(RecipeError, match=r"did you mean coarse\.lr"):
        load_recipe("tiny", ["coarse.learning_rate=1"])


def test_all_problems_are_reported_at_once():
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny", ["network.dim=9", "coarse.lr=nan", "fine.ssim=yes", "train.keep=0",
                             "sampling.grid=[1,2]", "coarse.patches=[12,64,96]"])  # fmt: skip
    told = "\n".join(caught.value.details)
    for key in ("network.dim", "coarse.lr", "fine.ssim", "train.keep", "sampling.grid",
                "coarse.patches"):  # fmt: skip
        assert f"{key} must be" in told or f"{key}[0] must be" in told, key
    assert "problems in this recipe" in caught.value.what


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("coarse.lr=fast", "coarse.lr must be a valid number, got 'fast'"),
        ("coarse.lr=true", "coarse.lr must be a number, got True"),
        ("coarse.iterations=2.5", "coarse.iterations must be a valid integer, got 2.5"),
        ("coarse.iterations=true", "coarse.iterations must be a number, got True"),
        ("network=3", "network must be a dictionary, got 3"),
        ("train.seed=9223372036854775808", "train.seed must be less than"),
        ("train.adam_betas=[0.9]", "train.adam_betas must have at least 2 items, got [0.9]"),
        ("data.workers=-1", "data.workers must be greater than or equal to 0, got -1"),
        # values that would start as many processes, or end in a traceback
        ("data.workers=1000", "data.workers must be less than or equal to 256, got 1000"),
        ("coarse.iterations=99999999999999999999", "coarse.iterations must be less than or equal"),
        ("fine.batches=[9,9,9999999999]", "fine.batches[2] must be less than or equal to 65536"),
        ("coarse.patches=[32,64,80000]", "coarse.patches[2] must be less than or equal to 8192"),
        ("diffusion.beta_start=0.5", "diffusion.beta_end must be at least beta_start, 0.5"),
        ("sampling.steps=2000", "sampling must have steps of at most 1000"),
        ("sampling.grid=[1000,5]", "sampling must have a grid within 0 to 999"),
        ("sampling.grid=[5,5]", "sampling.grid must be descending timesteps, got [5, 5]"),
        ("sampling.grid=[]", "sampling.grid must have at least 1 item, got []"),
        ("coarse.periods=[]", "coarse.periods must have at least 1 item"),
        ("coarse.periods=[{floor: 0}]", "coarse.periods[0].length is missing"),
        ("coarse.periods=[{length: 9, floor: 1}]", "coarse.periods must have floors of at most lr"),
        ("coarse.mixup_beta=0", "coarse.mixup_beta must be greater than 0, got 0"),
        ("network.blocks=[1,1,1,99]", "network.blocks[3] must be less than or equal to 64, got 99"),
        ("network.ffn_factor=0.01", "network.ffn_factor must give at least one hidden channel"),
        ("data.synthesis={sigma: [0, .inf]}", "data.synthesis must have finite numbers, got {'s"),
        ("data.synthesis={a: {b: .nan}}", "data.synthesis must have finite numbers"),
        ("task=paint", "task must be 'derain', 'deblur', 'denoise'"),
        ("coarse.lr", "key=value"),
        ("sampling=5", "sampling must be a dictionary, got 5"),
        ("=3", "key=value"),
        (".lr=3", "key=value"),
        ("coarse..lr=3", "key=value"),
        ("task=${oc.env:HOME}", "interpolations are not allowed"),
        (
            "coarse.periods=[{length:30,floor:1e-4}]",
            "unknown key coarse.periods[0].length:30; YAML needs a space after a colon: length: 30",
        ),
        ("coarse.periods=[{length: 1, flor: 2}]", "did you mean coarse.periods[0].floor?"),
        (f"train.micro_batch=0x{'f' * 5000}", "micro_batch is a number of more than 64 digits"),
        (f"coarse={{lr: {'9' * 65}}}", "lr is a number of more than 64 digits"),
        ("train.micro_batch=some", "must be 'auto' or at least 1"),
        ("train.micro_batch=0", "must be 'auto' or at least 1"),
        ("network.heads=[3,2,4,8]", "3 does not divide 16"),
        ("network.heads=[1,2,4,5]", "5 does not divide 128"),
        ("coarse.batches=[1]", "as many batches as patches"),
        ("fine.patches=[8,64,96]", "fine.ssim must be 'none' for patches under 16 px"),
    ],
)
def test_invalid_overrides_are_refused(override, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny", [override, "fine.ssim=paper"])
    assert words in "\n".join([str(caught.value), *caught.value.details])


def test_overrides_are_parsed_in_every_notation():
    assert stated(["coarse.lr=1", "sampling={steps: 2, grid: [7]}", " data.shards =a=b"]) == {
        "coarse.lr": 1,
        "sampling.steps": 2,
        "sampling.grid": [7],
        "data.shards": "a=b",
    }
    assert stated([]) == {}
    with pytest.raises(RecipeError, match="key=value"):
        stated(["coarse"])


def test_explicit_timesteps_need_no_number_of_steps():
    """The default number of 4 steps is not checked for them."""
    assert load_recipe("tiny", ["diffusion.timesteps=3", "sampling.grid=[2]"]).sampling.grid == [2]
    with pytest.raises(RecipeError, match="must have steps of at most 3"):
        load_recipe("tiny", ["diffusion.timesteps=3", "sampling.steps=4"])


@pytest.mark.parametrize("path", ["a${b", "${oc.env:HOME}", "${", "???"])
def test_a_path_that_no_recipe_can_hold_is_not_written(path):
    recipe = load_recipe("tiny")
    with pytest.raises(RecipeError, match="interpolations are not allowed, found") as caught:
        write_recipe(replace(recipe, data=replace(recipe.data, shards=path)))
    assert "ln -s" in str(caught.value.hint)


def test_a_wrong_override_is_named_and_not_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: tiny\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), ["coarse.lr=1", "coarse.lrr=1", "train.keep=-1"])
    assert caught.value.where is None
    assert "(given as coarse.lrr=1 train.keep=-1)" in str(caught.value)
    assert len(caught.value.details) == 2
    path.write_text("extends: tiny\nnetwrk: 1\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), ["coarse.lrr=1"])
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "this is not a YAML recipe"),
        ("- 1\n- 2\n", "a mapping of keys"),
        ("5\n", "a mapping of keys"),
        ("true\n", "a mapping of keys"),
        ("!!set {a, b}\n", "a mapping of keys"),
        ("a: &x [1]\nb: *x\n", "anchors and aliases"),
        ("task: ${oc.env:HOME}\n", "interpolations are not allowed"),
        (f"extends: 0x{'f' * 5000}\n", "extends is a number of more than 64 digits"),
        (f"sampling: {{grid: [0x{'f' * 5000}]}}\n", "grid is a number of more than 64 digits"),
        ("extends: [derain]\n", "extends must be the name or path"),
        ("extends: me.yaml\n", "circle"),
        ("extends: nothing\n", "there is no recipe 'nothing'"),
    ],
)
def test_invalid_files_are_refused(tmp_path, text, words):
    path = tmp_path / "me.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path)) or words.startswith("there is no recipe")


@pytest.mark.parametrize("text", ["coarse:\n\tlr: 1\n", "coarse:\r\n  lr: 1\r\n\tkeep: 2\r\n"])
def test_a_tab_is_named(tmp_path, text):
    path = tmp_path / "me.yaml"
    path.write_bytes(text.encode())
    with pytest.raises(RecipeError, match="not a YAML recipe") as caught:
        load_recipe(str(path))
    assert caught.value.hint == "replace the tab by spaces"


def test_a_long_chain_of_recipes_is_not_a_circle(tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    (tmp_path / "9.yaml").write_text("extends: tiny\n")
    load_recipe(str(tmp_path / "4.yaml"))  # the chain includes tiny and what that extends
    with pytest.raises(RecipeError, match="more than 8 recipes extend each other") as caught:
        load_recipe(str(tmp_path / "0.yaml"))
    assert caught.value.hint is not None


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("task: denoise\n", encoding="utf-8-sig")
    assert load_recipe(str(path)).task == "denoise"


def test_large_and_binary_files_are_refused(tmp_path):
    path = tmp_path / "large.yaml"
    path.write_text("a: 1\n" * 300_000)
    with pytest.raises(RecipeError, match="larger than 1000000 bytes"):
        read_yaml(path)
    path.write_bytes(b"\x89PNG\xff")
    with pytest.raises(RecipeError):
        read_yaml(path)


def test_a_file_named_like_a_recipe_does_not_shadow_it(tmp_path, monkeypatch):
    """Neither if the recipe is given by name, nor if another extends it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "derain").write_text("task: deblur\n")
    assert load_recipe("derain").task == "derain"
    assert load_recipe("derain-small").task == "derain"
    assert load_recipe("./derain").task == "deblur"
    (tmp_path / "mine.yaml").write_text("extends: derain\n")
    assert load_recipe("mine.yaml").task == "derain"


def test_a_missing_recipe_suggests_a_similar_one():
    with pytest.raises(RecipeError, match="there is no recipe 'derian'") as caught:
        find_recipe("derian")
    assert caught.value.hint == "did you mean derain?"
    with pytest.raises(RecipeError) as caught:
        find_recipe("zzz")
    assert str(caught.value.hint).startswith("give a file, or one of deblur, ")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("true", "call"),
        ("false", "none"),
        *((word, word) for word in ("auto", "none", "call", "level")),
    ],
)
def test_recompute_is_a_word_or_a_boolean_of_earlier_versions(tmp_path, written, meant):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: tiny\nfine:\n  recompute: {written}\n")
    recipe = load_recipe(str(path))
    assert recipe.fine.recompute == meant
    assert load_recipe("tiny", [f"fine.recompute={written}"]).fine.recompute == meant
    again = recipe_from_dict(recipe.to_dict(), [], "again")
    assert again == recipe
    old = recipe.to_dict()
    old["fine"]["recompute"] = meant != "none"
    assert recipe_from_dict(old, [], "old").fine.recompute == (
        "none" if meant == "none" else "call"
    )


@pytest.mark.parametrize("written", ["auto", "on", "off"])
def test_compile_may_be_given_as_on_or_off(tmp_path, written):
    """YAML reads on and off as booleans."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: tiny\ntrain:\n  compile: {written}\n")
    assert load_recipe(str(path)).train.compile == written
    assert load_recipe("tiny", [f"train.compile={written}"]).train.compile == written


@pytest.mark.parametrize("written", ["auto", "true", "false"])
def test_tensorboard_may_be_given_as_a_boolean(written):
    recipe = load_recipe("tiny", [f"train.tensorboard={written}"])
    assert recipe.train.tensorboard == written
    assert recipe_from_dict(recipe.to_dict(), [], "again") == recipe


def test_invalid_choices_are_refused():
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny", ["fine.recompute=levels", "train.tensorboard=perhaps"])
    told = "\n".join(caught.value.details)
    assert "fine.recompute must be 'auto', 'none', 'call' or 'level', got 'levels'" in told
    assert "train.tensorboard must be 'auto', 'true' or 'false'" in told


def test_unknown_keys_and_wrong_values_are_listed_together():
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny", ["coarse.itrations=3", "coarse.lr=abc"])
    assert len(caught.value.details) == 2
    assert any("coarse.iterations?" in line for line in caught.value.details)
    assert any(line.startswith("coarse.lr must be ") for line in caught.value.details)


def test_sections_of_a_dictionary_keep_their_defaults():
    recipe = recipe_from_dict({"coarse": {"lr": 1, "batches": ["8", 4, 2]}}, [], "here")
    assert recipe.coarse.lr == 1.0
    assert recipe.coarse.batches == [8, 4, 2]
    assert recipe_from_dict({}, [], "here") == Recipe()


def test_defaults_are_checked_together_with_given_values():
    with pytest.raises(RecipeError, match=r"coarse\.batches must be as many batches as patches"):
        recipe_from_dict({"coarse": {"patches": [16]}}, [], "here")


@pytest.mark.parametrize("value", [2024, "2024"])
def test_a_path_may_look_like_a_number(value):
    assert recipe_from_dict({"data": {"shards": value}}, [], "here").data.shards == "2024"


@pytest.mark.parametrize(
    "text",
    [
        "2024",
        "007",
        "1e-4",
        "2024-05-17",
        "12:30:00",
        "yes",
        "off",
        "True",
        "none",
        "a #1 set",
        "a: b",
        "lr=1e-4",
        "my shards/Rain 13K",
        "O'Brien",
        'the "best" one',
        "[1, 2]",
        "{x}",
        "*",
        "&set",
        "!tag",
        "@list",
        "%TEMP%",
        "|",
        "- x",
        "C:\\data\\new",
        "\\\\server\\share",
        "Größe/雨",
    ],
)
@pytest.mark.parametrize("key", ["data.shards", "data.streaks"])
def test_text_on_the_command_line_is_taken_literally(key, text):
    name = key.partition(".")[2]
    for written in (text, f"'{text}'", f'"{text}"'):  # with quotes that a shell has not removed
        assert getattr(load_recipe("tiny", [f"{key}={written}"]).data, name) == text


@pytest.mark.parametrize("text", ["", "null", "~"])
def test_text_can_be_set_to_null(text):
    assert load_recipe("tiny", ["data.shards=x", f"data.shards={text}"]).data.shards is None


@pytest.mark.slow
def test_text_is_passed_through_the_arguments_of_the_program():
    command = [sys.executable, "-m", "c2fdft_cli", "recipes", "show", "tiny", "--json"]
    wanted = {"shards": "a #1 = 'set'", "streaks": "2024-05-17"}
    run = subprocess.run(
        [*command, *(f"data.{name}={text}" for name, text in wanted.items())],
        capture_output=True,
        check=True,
    )
    found = json.loads(run.stdout)["data"]
    assert {name: found[name] for name in wanted} == wanted


def test_overrides_do_not_modify_the_dictionary():
    values = {"sampling": {"grid": [500]}}
    assert recipe_from_dict(values, ["sampling.steps=2"], "here").sampling == Sampling(steps=2)
    assert values == {"sampling": {"grid": [500]}}


def test_the_json_schema_has_every_key_and_its_limits():
    found = schema()
    assert set(found["properties"]) == set(Recipe().to_dict())
    for section, values in Recipe().to_dict().items():
        if section == "task":
            continue
        name = found["properties"][section]["$ref"].rpartition("/")[2]
        assert set(found["$defs"][name]["properties"]) == set(values)
        assert found["$defs"][name]["additionalProperties"] is False
    train = found["$defs"]["Train"]["properties"]
    assert train["keep"]["minimum"] == 1
    assert train["precision"]["enum"] == ["auto", "fp32", "tf32", "bf16", "fp16"]


def test_every_key_is_read_by_the_program():
    """Otherwise a recipe could set it without any effect.

    Accesses to keys are recognised by the names that the program gives to their sections.
    """
    sections = {name: value for name, value in vars(Recipe()).items() if is_dataclass(value)}
    assert {key.name for key in fields(sections.pop("network"))} <= set(signature(DFT).parameters)
    package = Path(c2fdft_cli.__file__).parent
    paths = [path for path in package.rglob("*.py") if package / "recipe" not in path.parents]
    read = {
        (getattr(node.value, "attr", getattr(node.value, "id", "")), node.attr)
        for path in paths
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Attribute)
    }
    keys = {(name, key.name) for name, section in sections.items() for key in fields(section)}
    keys |= {("recipe", key.name) for key in fields(Recipe)}
    keys |= {("period", key.name) for key in fields(Period)}
    stage = {"stage", "section"}
    other = {"coarse": stage, "fine": stage, "period": {"p"}}
    assert [
        f"{section}.{key}"
        for section, key in sorted(keys)
        if not read & {(name, key) for name in {section} | other.get(section, set())}
    ] == []


def test_every_option_of_the_network_is_in_the_table_of_tested_networks():
    """The tests of checkpoints, ONNX files, strips and planned memory run these networks."""
    tested = {
        key.name
        for key in fields(Network)
        if any(getattr(each, key.name) != getattr(SMALL, key.name) for each in NETWORKS.values())
    }
    untested = {key.name for key in fields(Network)} - tested
    assert not untested, f"add a network with another value to tests/kit/networks.py: {SECTION}"


@pytest.mark.slow
def test_reading_a_recipe_does_not_import_torch():
    code = (
        "import sys; from c2fdft_cli.recipe.files import load_recipe; load_recipe('derain-small'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("text", ["caf\u00e9", 'a"b\\c', "2024-05-17", "null", " #1", "x=y", "'q'"])
def test_text_given_by_a_program_is_not_changed(text):
    """JSON escapes must not become part of the text."""
    for value in (text, Path(text)):
        assert load_recipe("tiny", [override("data.shards", value)]).data.shards == str(value)


def test_numbers_may_be_numpys():
    words = [override("coarse.iterations", np.int64(7)), override("coarse.lr", np.float32(0.5)),
             override("data.streaks", None), override("coarse.patches", (np.int16(32),)),
             override("coarse.batches", [1])]  # fmt: skip
    recipe = load_recipe("tiny", words)
    assert (recipe.coarse.iterations, recipe.coarse.lr, list(recipe.coarse.patches)) == (
        7,
        0.5,
        [32],
    )


def test_a_path_that_is_not_utf_8_is_not_written():
    recipe = load_recipe("tiny", ["data.shards=" + os.fsdecode(b"\xff/shards")])
    with pytest.raises(RecipeError, match=r"cannot hold the path '\\udcff/shards'"):
        write_recipe(recipe)


def test_the_settings_of_the_sampler_are_those_that_its_users_know():
    names = {key.name for key in fields(Sampling)}
    known = {"steps", "spacing", "grid", "eta"}
    assert names == known, 'CONTRIBUTING.md, "A new setting of the sampler", lists its users'
