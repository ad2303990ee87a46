"""The reference pages match the program: keys, functions, exit codes, variables, errors."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

import c2fdft_cli as c2fdft
from c2fdft_cli import errors
from c2fdft_cli.data.images.formats import OUTPUT_FORMATS
from c2fdft_cli.data.layouts import search
from c2fdft_cli.data.synthesis.degrade import MODELS, parse_model
from c2fdft_cli.engine.evaluate import pairing
from c2fdft_cli.engine.restore.options import SAME_FORMAT
from c2fdft_cli.engine.sweep.report import COLUMNS as SWEEP_COLUMNS
from c2fdft_cli.engine.train.folder import COLUMNS as RUN_COLUMNS
from c2fdft_cli.engine.train.setup import MAY_CHANGE
from c2fdft_cli.engine.weights.checkpoint import Meta
from c2fdft_cli.metrics import full_reference, no_reference, protocols
from c2fdft_cli.recipe import schema
from c2fdft_cli.vocabulary import DEGRADATIONS
from tests.kit import python_reference, recipe_reference, scores_page, troubleshooting
from tests.kit.pages import UPDATE

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
SECTIONS = (
    schema.Network,
    schema.Diffusion,
    schema.Sampling,
    schema.Data,
    schema.Stage,
    schema.FineStage,
    schema.Train,
    schema.Period,
    schema.Recipe,
)


@pytest.mark.parametrize(
    "kit", [recipe_reference, python_reference, scores_page], ids=lambda kit: kit.FILE.name
)
def test_a_generated_page_is_up_to_date(kit):
    written = kit.FILE.read_text(encoding="utf-8")
    assert written == kit.reference(), UPDATE


@pytest.mark.parametrize("section", SECTIONS, ids=lambda one: one.__name__)
def test_exactly_the_keys_of_recipes_have_a_meaning(section):
    meanings = recipe_reference.meanings_of(section)
    what = f"recipe/schema.py: the docstring of {section.__name__} explains each key"
    assert sorted(meanings) == sorted(field.name for field in fields(section)), what
    assert all(meanings.values()), what


def test_every_function_of_the_package_is_on_its_page():
    page = python_reference.FILE.read_text(encoding="utf-8")
    names = {name for name in c2fdft.__all__ if name not in vars(errors)} - {"__version__"}
    missing = [name for name in names if f"## {name}\n" not in page]
    assert missing == [], "docs/reference/python.md: list them in tests/kit/python_reference.py"


def test_the_exit_codes_are_those_of_the_errors():
    page = (REFERENCE / "exit-codes.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE))
    kinds = [one for one in vars(errors).values() if isinstance(one, type)]
    kinds = [one for one in kinds if issubclass(one, errors.C2fdftError)]
    known = {(str(one.exit_code), one.__name__) for one in kinds if one.exit_code > 1}
    known |= {(str(128 + number), "Interrupted") for number in (2, 15)}
    assert rows == known, "docs/reference/exit-codes.md: a row for each class in errors.py"


def test_every_variable_that_is_read_is_documented():
    page = (REFERENCE / "environment.md").read_text(encoding="utf-8")
    code = "\n".join(path.read_text() for path in (ROOT / "c2fdft_cli").rglob("*.py"))
    read = set(re.findall(r"environ(?:\.get\(|\[|ment\()\"(\w+)\"", code))
    read |= set(re.findall(r"^SWITCH = \"(\w+)\"", code, re.MULTILINE))
    assert read >= {"RANK", "WORLD_SIZE", "LOCAL_RANK", "C2FDFT_KERNELS", "C2FDFT_NATIVE"}
    undocumented = [name for name in read if f"`{name}`" not in page]
    assert undocumented == [], "docs/reference/environment.md: describe these variables"


def test_columns_and_keys_of_files_are_documented():
    page = (REFERENCE / "files.md").read_text(encoding="utf-8")
    names = [", ".join(columns) for columns in (RUN_COLUMNS, SWEEP_COLUMNS)]
    names += [field.name for field in fields(Meta)]
    missing = [name for name in names if f"`{name}`" not in page]
    assert missing == [], "docs/reference/files.md: describe these columns and keys"


def test_the_names_of_sides_and_splits_are_those_that_are_recognised():
    page = (REFERENCE / "pairs.md").read_text(encoding="utf-8")
    tables = [
        [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]
        for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    ]
    sides, endings, splits = tables
    clean = re.findall(r"`(\w+)`", page.partition("may also be called\n")[2].partition(".")[0])

    def names(cell: str) -> tuple[str, ...]:
        return (*re.findall(r"`(\w+)`", cell), *(clean if cell.endswith("*") else ()))

    said = [
        search.Layout(published, names(lq), names(gt), task or None, as_words == "yes")
        for lq, gt, published, task, as_words in sides
    ]
    rows = "docs/reference/pairs.md: the rows of data/layouts/search.py, with the same names"
    assert sorted(said, key=repr) == sorted((*search.LAYOUTS, search.PIX2PIX), key=repr), rows
    known = {
        (side, getattr(one, key), one.task or "")
        for one in search.SUFFIXES
        for side, key in (("degraded", "lq"), ("clean", "gt"))
        if getattr(one, key)
    }
    assert {(side, names(words), task) for side, words, task in endings} == known, rows
    kinds = {"training": "train", "validation": "val", "skipped; score them with `eval`": "test"}
    used = {name: kinds[use] for cell, use in splits for name in names(cell)}
    assert used == search.SPLITS, rows
    assert [name for name in search.MASKS if f"`{name}`" not in page] == [], rows


def test_the_keys_that_a_resumed_run_may_change_are_documented():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table = page.partition("\n| key | purpose |\n")[2].partition("\n\n")[0]
    keys = re.findall(r"`([a-z]+\.[a-z_]+)`", table)
    documented = {re.sub(r"^(coarse|fine)\.", "", key) for key in keys}
    assert documented == set(MAY_CHANGE), "docs/training.md, Changing a run: its table of keys"


def test_the_words_in_the_names_of_results_are_documented():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    said = page.partition("their folders the words ")[2].partition(" do not matter")[0]
    words = set(re.findall(r"`(\w+)`", said))
    assert words == pairing.KINDS - search.KINDS, "docs/metrics.md, Pairs: these words"


def test_the_example_of_a_protocol_for_contributors_is_one():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^    (Protocol\(.*\)),$", page, re.MULTILINE)
    example = eval(line, {"Protocol": protocols.Protocol})
    assert example == protocols.PROTOCOLS[example.name], "CONTRIBUTING.md, A new protocol"


def test_smallest_sides_and_ranges_of_metrics_are_documented():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [
        f"| `{one.name}` | {one.direction.removesuffix(' is better')} | {one.range} "
        f"| {one.min_size} |"
        for one in full_reference.METRICS.values()
    ]
    missing = [row for row in rows if row not in page]
    assert missing == [], "docs/metrics.md: the table of metrics needs these rows"
    for one in no_reference.NO_REFERENCE.values():
        row = rf"\| `{one.name}` \|.*\| {one.min_size} \|"
        assert re.search(row, page) is not None, f"docs/metrics.md, No-reference metrics: {row}"


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_a_degradation_and_its_options_are_documented(kind):
    page = (ROOT / "docs" / "synthesis.md").read_text(encoding="utf-8")
    usage = f"--synthesize {'|'.join(DEGRADATIONS)}"
    assert page.count(usage) == 1, f"docs/synthesis.md begins with {usage}"
    section = page.partition(f"\n## {kind.capitalize()}\n")[2].partition("\n## ")[0]
    table = section.partition("\n| option |")[2].partition("\n\n")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    told = {}
    for _, names, defaults, *_ in (row.split("|") for row in rows):
        values = re.sub(r"(?<!\w)(?!true|false)([a-z]+)", r'"\1"', defaults)
        told |= zip(re.findall(r"`(\w+)`", names), json.loads(f"[{values}]"), strict=True)
    assert set(told) == {one.name for one in fields(MODELS[kind])}, "docs/synthesis.md"
    assert parse_model(kind, told) == MODELS[kind](), "docs/synthesis.md: a default"
    named = re.search(r"degrade clean images with (.*)\.", c2fdft.prepare.__doc__)[1]
    assert f'"{kind}"' in named, "api/jobs.py, prepare: synthesize names each degradation"


def test_the_formats_that_restore_writes_are_documented():
    names = [one.suffixes[0].removeprefix(".") for one in OUTPUT_FORMATS] + [SAME_FORMAT]
    page = (ROOT / "docs" / "restore.md").read_text(encoding="utf-8")
    listed = re.search(r"`--format ([\w|]+)`", page)
    assert listed[1].split("|") == names, "docs/restore.md, What comes out"
    told = re.search(r"format: ([^;]+);", c2fdft.Restorer.restore_folder.__doc__)
    assert re.findall(r'"(\w+)"', told[1]) == names, "api/restorer.py, restore_folder"


def test_the_errors_of_troubleshooting_are_those_printed():
    """Amounts of memory are not compared, as they depend on the machine's kernels."""
    page = troubleshooting.FILE.read_text(encoding="utf-8")
    assert len(troubleshooting.BLOCK.findall(page)) >= 20
    told, printed = (
        re.sub(r"[\d,.]+(?= (MiB|megapixels))", "N", text)
        for text in (page, troubleshooting.reference())
    )
    assert told == printed, UPDATE


def test_the_questions_list_all_dependencies_but_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [re.split(r"[>=<]", one)[0] for one in project["dependencies"]]
    questions = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^    pip install (numpy .*)$", questions, re.MULTILINE)
    assert sorted(line.split()) == sorted(set(needed) - {"torch"}), "docs/faq.md: pip install ..."
