"""recipes/scripts/pack_weights.py: which weights may be packaged, and their entries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.weights.catalogue import read_catalogue
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
from c2fdft_cli.errors import CheckpointError, UsageError
from c2fdft_cli.recipe.schema import Data, Network, Recipe
from recipes.scripts import pack_weights
from recipes.scripts.pack_weights import add_entry
from tests.kit.processes import python
from tests.kit.weights import FACTS, write_facts, write_packed

SCRIPT = Path(pack_weights.__file__)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "packaged"


@pytest.fixture
def net(tiny_net: Callable[..., DFT]) -> DFT:
    return tiny_net()


def test_facts_are_read_from_the_file(folder: Path, net: DFT, tmp_path: Path) -> None:
    packed = write_packed(tmp_path / "run.pt", net, [999, 500])
    facts = write_facts(tmp_path / "facts.json")
    entry = add_entry("derain", packed, facts, folder)
    assert entry.parameters == sum(p.numel() for p in net.parameters())
    stored, given = (torch.load(path, weights_only=True) for path in (folder / "derain.pt", packed))
    assert stored.keys() == given.keys() == {"params_ema", "meta"}
    for key, tensor in given["params_ema"].items():
        assert stored["params_ema"][key].dtype == torch.bfloat16
        assert torch.equal(stored["params_ema"][key], tensor)
    add_entry("denoise", packed, write_facts(tmp_path / "n.json", task="denoise"), folder)
    add_entry("derain-4step", packed, facts, folder)
    assert list(read_catalogue(folder)) == ["derain", "derain-4step", "denoise"]


def test_folder_names_of_the_training_are_removed(folder: Path, net: DFT, tmp_path: Path) -> None:
    recipe = Recipe(
        network=Network(dim=8, blocks=[1, 1, 1, 1]),
        data=Data(synthesize="rain", shards="/secret/a", streaks="/secret/b"),
    )
    said = {"data": "/secret/c", "recipe": recipe.to_dict()}
    packed = write_packed(tmp_path / "run.pt", net, [500], said=said)
    add_entry("derain", packed, write_facts(tmp_path / "facts.json"), folder)
    assert b"secret" in packed.read_bytes()
    assert b"secret" not in (folder / "derain.pt").read_bytes()
    meta = load_checkpoint(folder / "derain.pt").meta
    assert meta.data is None
    assert meta.recipe is not None
    assert meta.recipe["data"]["synthesize"] == "rain"


def test_an_entry_is_replaced_only_if_requested(folder: Path, net: DFT, tmp_path: Path) -> None:
    facts = write_facts(tmp_path / "facts.json")
    first = add_entry("derain", write_packed(tmp_path / "a.pt", net, [999]), facts, folder)
    other, before = write_packed(tmp_path / "b.pt", net, [500]), (folder / "derain.pt").read_bytes()
    with pytest.raises(UsageError, match="packaged weights 'derain' already exist"):
        add_entry("derain", other, facts, folder)
    assert read_catalogue(folder) == {"derain": first}
    assert (folder / "derain.pt").read_bytes() == before
    second = add_entry("derain", other, facts, folder, overwrite=True)
    assert read_catalogue(folder) == {"derain": second}
    assert second.grid == [500]


def test_the_checkpoint_is_not_replaced(folder: Path, net: DFT, tmp_path: Path) -> None:
    folder.mkdir()
    packed = write_packed(folder / "derain.pt", net, [999], said={"data": "here"})
    with pytest.raises(UsageError, match="packaging would replace the checkpoint"):
        add_entry("derain", packed, write_facts(tmp_path / "facts.json"), folder)
    assert load_checkpoint(packed).meta.data == "here"


def test_files_not_in_the_packaged_format_are_refused(
    folder: Path, net: DFT, tmp_path: Path
) -> None:
    facts = write_facts(tmp_path / "facts.json")
    params: dict[str, torch.Tensor] = {"x": torch.zeros(1)}
    both = write_packed(tmp_path / "both.pt", net, [999], params=params)
    with pytest.raises(CheckpointError, match="must hold only params_ema and meta"):
        add_entry("derain", both, facts, folder)
    with pytest.raises(CheckpointError, match="holds no timesteps"):
        add_entry("derain", write_packed(tmp_path / "none.pt", net, None), facts, folder)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        add_entry("derain", tmp_path / "missing.pt", facts, folder)
    assert not folder.exists()


def test_files_that_are_too_large_are_refused(
    folder: Path, net: DFT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_weights, "MAX_FILE_BYTES", 1000)
    facts = write_facts(tmp_path / "facts.json")
    with pytest.raises(CheckpointError, match="must have at most 1000 bytes"):
        add_entry("derain", write_packed(tmp_path / "a.pt", net, [999]), facts, folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": "paint"}, "task must be .*, got .paint."),
        (
            {"scores": [{**FACTS["scores"][0], "psnr": "high"}]},
            "psnr must be a valid number, got .high.",
        ),
        ({"more": 1}, "unknown key more"),
        ({"sha256": "0"}, "cannot hold keys that come from the file: sha256"),
    ],
)
def test_invalid_facts_are_refused(
    changes: dict[str, Any], says: str, folder: Path, net: DFT, tmp_path: Path
) -> None:
    packed = write_packed(tmp_path / "a.pt", net, [999])
    with pytest.raises(UsageError, match=says):
        add_entry("derain", packed, write_facts(tmp_path / "facts.json", **changes), folder)
    assert not folder.exists()


def test_facts_may_begin_with_a_byte_order_mark(folder: Path, net: DFT, tmp_path: Path) -> None:
    facts = write_facts(tmp_path / "facts.json")
    facts.write_text(facts.read_text("utf-8"), encoding="utf-8-sig")
    assert add_entry("derain", write_packed(tmp_path / "a.pt", net, [999]), facts, folder).task


def test_files_without_facts_are_refused(folder: Path, net: DFT, tmp_path: Path) -> None:
    packed = write_packed(tmp_path / "a.pt", net, [999])
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    for name in ("bad.json", "list.json", "missing.json"):
        with pytest.raises(UsageError, match="facts") as caught:
            add_entry("derain", packed, tmp_path / name, folder)
        assert str(caught.value.hint).startswith("JSON with task, ")
    good = write_facts(tmp_path / "facts.json")
    for name in ("../derain", "Derain", "", "a" * 60):
        with pytest.raises(UsageError, match="cannot be packaged"):
            add_entry(name, packed, good, folder)
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.acceptance
def test_the_script_packages_weights(folder: Path, net: DFT, tmp_path: Path) -> None:
    packed = write_packed(tmp_path / "run.pt", net, [500])
    facts = write_facts(tmp_path / "facts.json")
    words = (SCRIPT, packed, "--name", "derain", "--facts", facts, "--into", folder)
    done = python(*words)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.startswith("packaged: derain (")
    assert list(read_catalogue(folder)) == ["derain"]
    again = python(*words)
    assert again.returncode == 2
    assert again.stderr.endswith("\nhint: choose another --name, or use --overwrite\n")
    assert python(*words, "--overwrite").returncode == 0
