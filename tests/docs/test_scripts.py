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
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

from tests.kit.command import run
from tests.kit.formula import picture
from tests.kit.restore import Picture, save
from tests.kit.training import MINI

ROOT = Path(__file__).parents[2]
HOWTO = ROOT / "docs" / "howto"
SCRIPTS = sorted((ROOT / "recipes" / "scripts").glob("*.py"))


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
