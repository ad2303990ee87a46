"""`c2fdft convert`: its output, JSON and exit codes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.engine.weights.checkpoint import Meta, load_checkpoint, save_checkpoint
from c2fdft_cli.recipe.schema import Diffusion, Network
from tests.kit import command

run = partial(command.run, "convert")
refused = partial(command.refused, "convert")


@pytest.fixture
def weights(tmp_path):
    network = Network(dim=8, blocks=[1, 1, 1, 1])
    state = make_network(network).state_dict()
    meta = Meta(network, stage="fine", step=9, grid=[999, 500])
    save_checkpoint(tmp_path / "fine.pt", state, state, meta)
    return tmp_path / "fine.pt"


def test_a_conversion_to_the_official_format_is_described(weights, tmp_path):
    result = run(weights, tmp_path / "net_g.pth")
    assert result.exit_code == 0, result.output
    for words in (
        "official",
        "raw and ema",
        "float32",
        "omitted",
        "grid [999, 500]",
        "--grid 999,500",
    ):
        assert words in result.stdout
    assert set(load_checkpoint(tmp_path / "net_g.pth").ema) == set(load_checkpoint(weights).ema)


@pytest.mark.parametrize(
    ("meta", "then"),
    [
        ({"recipe": {"sampling": {"eta": 0.5}}}, "--grid 999,500 --eta 0.5"),
        ({"diffusion": Diffusion(beta_end=0.01)}, None),
    ],
)
def test_the_next_command_restores_as_the_source_or_there_is_none(tmp_path, weights, meta, then):
    state, about = load_checkpoint(weights).ema, load_checkpoint(weights).meta
    save_checkpoint(weights, state, state, replace(about, **meta))
    told = json.loads(run(weights, tmp_path / "a.pth", "--json").stdout)
    assert told["next"] is None if then is None else told["next"].endswith(f".pth {then}")
    result = run(weights, tmp_path / "b.pth")
    assert ("next:" in result.stdout) == (then is not None)
    assert ("another noise schedule" in result.output) == (then is None)
    again = json.loads(run(weights, tmp_path / "c.pt", "--json").stdout)
    assert again["next"] == f"c2fdft restore IN OUT --weights {tmp_path / 'c.pt'}"


def test_a_conversion_to_the_packaged_format_as_json(weights, tmp_path):
    out = tmp_path / "new" / "small.pt"
    result = run(weights, out, "--half", "bf16", "--ema-only", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["form"], told["sets"], told["stored"]) == ("checkpoint", ["ema"], "bfloat16")
    assert told["bytes"] == out.stat().st_size
    assert told["grid"] == [999, 500]
    assert told["next"] == f"c2fdft restore IN OUT --weights {out}"


def test_a_conversion_to_safetensors(weights, tmp_path):
    pytest.importorskip("safetensors")
    assert run(weights, tmp_path / "a.safetensors").exit_code == 0
    again = run(tmp_path / "a.safetensors", tmp_path / "b.pt")
    assert again.exit_code == 0, again.output


def test_a_set_that_the_source_lacks_is_noted(weights, tmp_path):
    pytest.importorskip("safetensors")
    averaged = tmp_path / "averaged.pt"
    assert "note:" not in run(weights, averaged, "--ema-only").stderr
    done = run(averaged, tmp_path / "a.safetensors", "--raw")
    assert "note: the source has no raw weights; its only set was stored" in done.stderr
    torch.save({"params": load_checkpoint(weights).params}, tmp_path / "official.pth")
    done = run(tmp_path / "official.pth", tmp_path / "b.pt", "--ema-only")
    assert "note: the source has no ema weights; its only set was stored" in done.stderr


@pytest.mark.acceptance
def test_a_conversion_to_onnx(weights, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    told = json.loads(run(weights, tmp_path / "a.onnx", "--json").stdout)
    assert 0 < told["onnx_error"] < 1e-4
    words = run(weights, tmp_path / "a.onnx", "--overwrite")
    assert "relative, against torch" in words.stdout
    assert "docs/convert.md" in words.stdout


def test_usage_errors(weights, tmp_path):
    refused(
        weights,
        tmp_path / "a.foo",
        code=2,
        says="the suffix does not determine the format to write",
    )
    refused(weights, weights, "--overwrite", code=2, says="would replace its input")
    (tmp_path / "b.pth").touch()
    refused(weights, tmp_path / "b.pth", code=2, says="use --overwrite")
    refused(
        weights, tmp_path / "a.pth", "--ema-only", code=2, says="--ema-only cannot be combined with"
    )
    refused(weights, tmp_path / "a.pth", "--to", "tar", code=2, says="--to must be")


def test_sources_without_weights_are_refused(tmp_path):
    (tmp_path / "text.pt").write_text("I am text")
    refused(tmp_path / "text.pt", tmp_path / "a.pth", code=4, says="not a checkpoint")
    refused(tmp_path / "none.pt", tmp_path / "a.pth", code=4, says="no such checkpoint")
    assert not (tmp_path / "a.pth").exists()


def test_a_missing_package_is_named(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    says = "pip install 'c2fdft[export]'"
    refused(weights, tmp_path / "a.safetensors", code=5, says=says)


def test_an_output_that_cannot_be_written_is_an_error(weights):
    refused(weights, weights / "a.pth", code=5, says="regular file")
