"""Shell code in the how-to pages (jq on JSON, the script for clusters), and recipes/scripts."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from omegaconf import OmegaConf

from c2fdft_cli.data.images.picture import save_rgb8
from tests.kit.command import run
from tests.kit.formula import picture
from tests.kit.processes import python
from tests.kit.restore import Picture, save
from tests.kit.training import MINI

ROOT = Path(__file__).parents[2]
HOWTO = ROOT / "docs" / "howto"
FOLDER = ROOT / "recipes" / "scripts"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def blocks(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
@pytest.mark.acceptance
def test_json_is_read_by_jq_as_documented(tmp_path, monkeypatch, pair_folder, shard_folder) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        save(Path(f"photos/{number}.png"), Picture(picture(24, 32, number)))
    shutil.copytree(pair_folder / "train" / "rainy", "set/lq")
    shutil.copytree(pair_folder / "train" / "clean", "set/gt")
    shutil.copytree(shard_folder, "shards/set")
    recipe = OmegaConf.merge(
        OmegaConf.load(ROOT / "recipes" / "tiny.yaml"), OmegaConf.from_dotlist(list(MINI))
    )
    OmegaConf.save(recipe, "mine.yaml")
    for line in "".join(blocks(HOWTO / "scripts.md")).splitlines():
        program, *words = shlex.split(line)
        if program == "c2fdft":
            *words, arrow, target = words
            done = run(*words)
            assert (arrow, done.exit_code) == (">", 0), f"{line}\n{done.output}"
            Path(target).write_text(done.stdout)
            continue
        done = subprocess.run([program, *words], check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert "null" not in done.stdout, line
        if "select(.error)" not in line:
            assert done.stdout.strip(), line
    _check_keys({name: json.loads(Path(f"{name}.json").read_text()) for name in DOCUMENTS})


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
@pytest.mark.acceptance
@pytest.mark.parametrize(("damaged", "code"), [(True, 0), (None, 3)])
def test_the_script_of_exit_codes_continues_after_failed_images(tmp_path, damaged, code) -> None:
    (script,) = blocks(ROOT / "docs" / "reference" / "exit-codes.md")
    program = tmp_path / "bin" / "c2fdft"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m c2fdft_cli "$@" --device cpu\n')
    program.chmod(0o755)
    (tmp_path / "in").mkdir()
    if damaged:
        save(tmp_path / "in" / "good.png", Picture(picture(24, 32, 1)))
        (tmp_path / "in" / "bad.png").write_bytes(b"nonsense")
    path = f"{program.parent}:{os.environ['PATH']}"
    words, env = ["sh", "-c", script + "\necho next"], {**os.environ, "PATH": path}
    done = subprocess.run(words, check=False, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("next" in done.stdout) == (code == 0)
    assert ("in/bad.png: " in done.stderr) == (code == 0)


DOCUMENTS = ("prepared", "trained", "sweep", "restored", "scores")


def _check_keys(documents: dict[str, dict[str, object]]) -> None:
    """Check that the keys listed in the pages are those that are printed."""
    table = (HOWTO / "scripts.md").read_text(encoding="utf-8")
    files = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    restoring = (ROOT / "docs" / "restore.md").read_text(encoding="utf-8")
    for name, page, start in (
        ("prepared", table, "| `prepare` |"),
        ("trained", table, "| `train-coarse`, `train-fine` |"),
        ("sweep", files, "## sweep.json"),
        ("restored", restoring, "`--json` prints"),
        ("scores", files, "The keys of `eval.json`:"),
    ):
        said = re.split(r"\.(?:\s|$)|;|\|\n", page[page.index(start) + len(start) :], maxsplit=1)[0]
        listed = set(re.findall(r"\w+", said.replace("`--json` prints", "")))
        shared = {"stamped", "files", "next", "written"} if name in ("sweep", "scores") else set()
        assert documents[name].keys() - shared == listed - {"json", "prints"}, name


SRUN = """#!/bin/bash
echo "$@" >> srun.log
mkdir -p runs/derain
case $(wc -l < srun.log) in
  1|2) echo "$RANDOM" > runs/derain/state.pt; touch -d "@$((1000 + $(wc -l < srun.log)))" \
       runs/derain/state.pt; exit 1 ;;
  3) exit 1 ;;
  *) touch runs/derain/state.pt ;;
esac
"""


@pytest.mark.skipif(sys.platform != "linux", reason="stat and touch are GNU's")
def test_the_cluster_script_starts_resumes_and_ends(tmp_path) -> None:
    """srun is stopped after a step twice, fails before any step once, and then finishes.

    A coarse.pt exists from the start, as if a finished run were extended.
    """
    (script,) = [one for one in blocks(HOWTO / "cluster.md") if one.startswith("#!")]
    (tmp_path / "job.sh").write_text(script)
    (tmp_path / "scontrol").write_text(
        '#!/bin/bash\n[ "$1" = show ] && echo node7 || echo "$@" >> queue\n'
    )
    (tmp_path / "srun").write_text(SRUN)
    for stub in ("srun", "scontrol"):
        (tmp_path / stub).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "42",
    }
    (tmp_path / "runs" / "derain").mkdir(parents=True)
    (tmp_path / "runs" / "derain" / "coarse.pt").touch()
    codes = [
        subprocess.run(["bash", "job.sh"], check=False, cwd=tmp_path, env=environment).returncode
        for _ in range(4)
    ]
    assert codes == [0, 0, 1, 0]
    assert (tmp_path / "queue").read_text().splitlines() == ["requeue 42"] * 2
    calls = (tmp_path / "srun.log").read_text().splitlines()
    assert all("--recipe derain --data shards/Rain13K" in call for call in calls)
    assert all("--resume-auto" in call for call in calls)
    assert all("--rdzv-endpoint node7:29500" in call for call in calls)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_imports_names_that_exist(script: Path) -> None:
    """Most scripts run for minutes, or on a GPU only: a removed name would be found too late."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("c2fdft_cli"):
            module = _imported(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    _imported(f"{node.module}.{alias.name}")


def _imported(name: str) -> ModuleType:
    """Import a module; skip the test if it needs Triton, which exists only on Linux."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == "triton":
            pytest.skip("Triton is not installed")
        raise


@pytest.mark.acceptance
def test_the_costs_of_reading_and_writing_files_are_measured() -> None:
    done = python(FOLDER / "bench_pipeline.py", "--count", "2", "--format", "jpg")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pictures"] == 2
    parts = {"conversion and writing", "encoding", "main thread", "noise", "reading"}
    assert found["cpu_ms_of"].keys() == parts
    assert all(0 < spent < found["cpu_ms"] for spent in found["cpu_ms_of"].values())


@pytest.mark.acceptance
def test_the_network_is_compared_with_the_one_written_down_plainly() -> None:
    done = python(FOLDER / "compare_speed.py", "forward", "--size", "8", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    first, *others = map(json.loads, done.stdout.splitlines())
    assert (first["name"], first["ratio"], first["relative_error"]) == ("transcription fp32", 1, 0)
    assert {"network fp32", "strips fp32"} <= {row["name"] for row in others}
    assert all(row["relative_error"] < (2e-2 if "bf16" in row["name"] else 1e-5) for row in others)


@pytest.fixture
def benchmark(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs benchmark.sh in a folder, with the same scores for any set."""
    mean = {"psnr": 30.0, "ssim": 0.9}
    document = json.dumps({"mean": mean, "degraded": {"mean": mean}, "images": [{}]})
    program = tmp_path / "bin" / "c2fdft"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{document}'\n")
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}

    def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        line = ["sh", str(FOLDER / "benchmark.sh"), "weights.pt", *words]
        return subprocess.run(
            line, check=False, cwd=folder, env=env, capture_output=True, text=True
        )

    return call


def test_the_columns_of_a_benchmark_are_the_names_of_the_sets(tmp_path, benchmark) -> None:
    for name in ("Rain100L", "-my set"):
        (tmp_path / name).mkdir()
    done = benchmark(tmp_path / "Rain100L", ".", "../-my set/")
    assert done.returncode == 0, done.stderr
    header = done.stdout.splitlines()[0]
    assert header == "| derain (PSNR/SSIM) | Rain100L (1) | -my set (1) | average |"
    assert "| Restormer | 38.99/.978 | - | - |" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").glob("*/")) == ["-my set", "Rain100L"]


def test_two_sets_of_one_name_are_refused_before_the_first_is_scored(tmp_path, benchmark) -> None:
    for name in ("a/val", "b/val"):
        (tmp_path / name).mkdir(parents=True)
    for sets in (("a/val", "b/val"), ("a/val", "a/val/"), ("a/val", "b/../b/val/.")):
        done = benchmark(tmp_path, *sets)
        assert (done.returncode, done.stdout) == (2, "")
        assert "error: two sets have the name val, and would share the folder" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", ["bench.sh", "check_training.sh", "check_kernels.sh"])
def test_a_shell_script_answers_an_unknown_option_with_its_usage(script: str) -> None:
    line = ["bash", str(FOLDER / script), "--help"]
    # without the option it would run for minutes
    env = {**os.environ, "PYTHON": "false"}
    done = subprocess.run(line, check=False, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"recipes/scripts/{script}" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["soak.py", pytest.param("check_training.py", marks=pytest.mark.acceptance)]
)
def test_a_script_without_its_arguments_prints_its_usage(script: str) -> None:
    pytest.importorskip("matplotlib")
    done = python(FOLDER / script)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"usage: {script}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [("rain_layers.py", "out"), pytest.param(("fit_noise.py",), marks=pytest.mark.acceptance)],
)
def test_a_wrong_path_is_an_error_in_one_line(tmp_path, words: tuple[str, ...]) -> None:
    pytest.importorskip("scipy")
    script, *more = words
    done = python(FOLDER / script, tmp_path / "none", *(tmp_path / name for name in more))
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(r"error: .*none.*: no such folder\nhint: check the path\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_pairs_without_a_rain_layer_are_skipped_with_the_reason(tmp_path) -> None:
    clean = np.full((120, 160, 3), 100, np.uint8)
    rainy = {"rain": clean + 50, "dry": clean + 5, "white": np.full_like(clean, 255)}
    for name, pixels in rainy.items():
        for folder, image in (("rainy", pixels), ("clean", clean)):
            (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
            save_rgb8(tmp_path / "set" / folder / f"{name}.png", image)
    done = python(FOLDER / "rain_layers.py", tmp_path / "set", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stderr.splitlines()) == [
        f"1 layer in {tmp_path / 'out'}",
        "dry: skipped, the mean of 160 x 120 px is 5.0",
        "rain: 160 x 120 px",
        "white: skipped, no part of 96 x 96 px is free of white pixels",
    ]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rain.png"]
