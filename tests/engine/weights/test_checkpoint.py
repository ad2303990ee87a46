"""Checkpoints: this program's, official ones, and files that are neither."""

from __future__ import annotations

import json
import math
import os
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.engine.weights.checkpoint import (
    IF_LATER,
    Checkpoint,
    Meta,
    besides_weights,
    infer_network,
    load_checkpoint,
    plain,
    read_meta,
    replace_meta,
    save_checkpoint,
    versions,
)
from c2fdft_cli.errors import CheckpointError, RecipeError, ResourceError
from c2fdft_cli.recipe.files import load_recipe
from c2fdft_cli.recipe.schema import Diffusion, Network
from tests.kit.documents import odd_documents
from tests.kit.formula import relative, wave
from tests.kit.networks import NETWORKS, SECTION, SMALL

STAGES = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")


@pytest.fixture
def saved(tmp_path):
    net = make_network(SMALL)
    path = tmp_path / "weights.pt"
    meta = Meta(SMALL, stage="fine", step=7, grid=[999, 500], metrics={"psnr": 30.5})
    save_checkpoint(path, net.state_dict(), net.state_dict(), meta)
    return path, net.eval()


def rewrite(path, **changes):
    """Write a checkpoint again with changed content; a key set to None is removed."""
    content = torch.load(path, weights_only=True) | changes
    torch.save({k: v for k, v in content.items() if v is not None}, path)


def test_a_checkpoint_is_read_back_as_saved(saved):
    path, net = saved
    checkpoint = load_checkpoint(path)
    assert checkpoint.timesteps() == [999, 500]
    assert (checkpoint.meta.stage, checkpoint.meta.step) == ("fine", 7)
    x, t = wave([1, 6, 16, 16], 0.2), torch.tensor([5.0])
    with torch.inference_mode():
        assert torch.equal(checkpoint.network()(x, t), net(x, t))


def test_metadata_are_replaced_by_those_of_the_present_versions(saved):
    path, before = saved[0], load_checkpoint(saved[0])
    meta = replace(before.meta, grid=[400], versions={"torch": "1.0"})
    assert not replace_meta(path, meta, {**before.ema, "output.weight": torch.ones(1)})
    assert load_checkpoint(path).timesteps() == [999, 500]
    assert replace_meta(path, meta, before.ema)
    after = load_checkpoint(path)
    assert (after.timesteps(), after.meta.versions) == ([400], versions())


@pytest.mark.parametrize(
    ("recipe", "eta"),
    [
        (None, 0.0),
        ({}, 0.0),
        ({"sampling": {"steps": 4}}, 0.0),
        ({"sampling": {"eta": 0.5}, "of a later version": 1}, 0.5),
        ({"sampling": {"eta": 1}}, 1.0),
        ({"sampling": {"eta": 2}}, 0.0),
        ({"sampling": {"eta": True}}, 0.0),
        ({"sampling": {"eta": math.nan}}, 0.0),
        ({"sampling": "eta"}, 0.0),
    ],
)
def test_eta_is_that_of_the_recipe_even_if_this_version_cannot_read_it(saved, recipe, eta):
    checkpoint = load_checkpoint(saved[0])
    checkpoint.meta.recipe = recipe
    assert checkpoint.eta() == eta


def test_a_checkpoint_has_the_keys_of_an_official_one(saved):
    content = torch.load(saved[0], weights_only=True)
    assert set(content) == {"params", "params_ema", "meta"}
    assert json.loads(content["meta"])["format_version"] == 2


def test_metadata_of_the_first_version_are_read(saved):
    path, _ = saved
    values = json.loads(load_checkpoint(path).meta.to_json())
    for key in ("data_train", "data_val"):
        del values[key]
    rewrite(path, meta=json.dumps({**values, "format_version": 1}))
    meta = load_checkpoint(path).meta
    assert meta.data_train is meta.data_val is None
    assert meta.network == load_checkpoint(path).meta.network


def test_what_a_later_version_may_have_written_is_refused_with_a_hint(saved):
    path, _ = saved
    checkpoint = load_checkpoint(path)
    checkpoint.meta.recipe = {"train": {"muon": True}}
    with pytest.raises(RecipeError, match=r"unknown key train\.muon") as caught:
        checkpoint.recipe([])
    assert caught.value.hint == IF_LATER
    with pytest.raises(RecipeError, match="given as") as caught:
        replace(checkpoint, meta=replace(checkpoint.meta, recipe={})).recipe(["train.muon=1"])
    assert caught.value.hint != IF_LATER
    values = json.loads(checkpoint.meta.to_json())
    rewrite(path, meta=json.dumps({**values, "colours": "linear"}))
    with pytest.raises(CheckpointError, match="unknown key colours") as refused:
        load_checkpoint(path)
    assert refused.value.hint == IF_LATER


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_network_is_inferred_from_names_and_shapes(kind, tmp_path):
    network, state = NETWORKS[kind], make_network(NETWORKS[kind]).state_dict()
    inferred = infer_network(state, tmp_path)
    exact = replace(inferred, ffn_factor=network.ffn_factor)
    assert exact == network, f"infer_network must find each option in the weights: {SECTION}"
    assert make_network(inferred, state) is not None


@given(dim=st.sampled_from(range(4, 97, 2)), factor=st.floats(0.25, 8))
def test_an_inferred_network_has_the_hidden_channels_of_the_weights(dim, factor):
    """The quotient hidden / width is rounded, and width times it may be less than hidden."""
    widths = [(dim << level, int((dim << level) * factor)) for level in range(4)]
    heads, state = torch.ones(1), {"patch_embed.proj.weight": torch.empty(dim, 0)}
    for stage, (width, hidden) in zip(STAGES, widths, strict=True):
        state[f"{stage}.0.attn.temperature"] = heads
        state[f"{stage}.0.ffn.project_in.weight"] = torch.empty(hidden, width, 0)
    found = infer_network(state, Path("x.pth"))
    assert [(width, int(width * found.ffn_factor)) for width, _ in widths] == widths


def test_weights_whose_quotient_of_widths_is_rounded_down_are_read(tmp_path):
    network = Network(dim=14, blocks=[1, 1, 1, 1], heads=[1, 1, 1, 1], ffn_factor=2.06)
    state = make_network(network).state_dict()
    torch.save(state, tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth").network().state_dict().keys() == state.keys()


def test_a_file_without_meta_is_an_official_checkpoint(saved):
    path, _ = saved
    rewrite(path, meta=None)
    checkpoint = load_checkpoint(path)
    assert checkpoint.meta.stage == "released"
    assert checkpoint.meta.network.dim == 8
    assert checkpoint.timesteps() == [999, 666, 333, 0]


@pytest.mark.parametrize(("total", "timesteps"), [(2, [1, 0]), (3, [2, 1, 0]), (5, [4, 3, 1, 0])])
def test_a_short_schedule_without_timesteps_is_sampled_at_no_more_than_it_has(
    saved, total, timesteps
):
    checkpoint = load_checkpoint(saved[0])
    meta = replace(checkpoint.meta, grid=None, diffusion=Diffusion(timesteps=total))
    assert replace(checkpoint, meta=meta).timesteps() == timesteps


def test_params_alone_are_sufficient(saved):
    path, _ = saved
    rewrite(path, params_ema=None, meta=None)
    assert load_checkpoint(path).ema.keys() == load_checkpoint(path).params.keys()


def test_a_bare_state_dict_is_sufficient(saved, tmp_path):
    bare = tmp_path / "bare.pth"
    torch.save(saved[1].state_dict(), bare)
    assert load_checkpoint(bare).meta.network.dim == 8


def test_what_a_checkpoint_holds_besides_weights_is_listed(saved):
    path, net = saved
    state, loop = net.state_dict(), []
    loop.append(loop)
    some = next(iter(state.values()))
    own = {"params": state, "params_ema": state, "state_dict": [state], "one": some}
    others = {"optimizer": {"lr": 1}, "none": {}, "mixed": [some, 3], "deep": [[state, [4]]]}
    rewrite(path, **own)
    assert besides_weights(path) == []
    rewrite(path, **own, **others, loop=loop, step=3)
    assert besides_weights(path) == [*others, "loop", "step"]


def test_a_list_that_is_in_a_file_many_times_is_looked_at_once(saved):
    path, net = saved
    state = net.state_dict()
    many = {f"{number}": [state, [0] * 3] for number in range(9)}
    large = [0] * 40_000
    rewrite(path, params=state, **many, **{f"k{number}": large for number in range(2000)})
    began = time.process_time()
    assert len(besides_weights(path)) == 2009
    assert time.process_time() - began < 3


def test_weights_without_memory_to_convert_them_are_not_damaged(saved, monkeypatch):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch.Tensor, "float", fail)
    with pytest.raises(ResourceError, match="out of memory"):
        load_checkpoint(saved[0])


def test_prefixes_are_dropped():
    state = {"module._orig_mod.a": torch.ones(1), "_orig_mod.b": torch.ones(1)}
    assert set(plain(state)) == {"a", "b"}


def test_half_precision_weights_become_float32(saved):
    path, net = saved
    half = {k: v.bfloat16() for k, v in net.state_dict().items()}
    rewrite(path, params=half, params_ema=half)
    loaded = load_checkpoint(path).network()
    assert next(loaded.parameters()).dtype == torch.float32
    name = "latent.0.attn.qkv.weight"
    assert relative(loaded.state_dict()[name], net.state_dict()[name]) < 0.01


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda p: p.write_text("hello, I am not a checkpoint"), "not a checkpoint"),
        (lambda p: p.write_bytes(b""), "the file is empty"),
        (lambda p: torch.save([1, 2], p), "the file holds a list"),
        (lambda p: torch.save({"a": 1}, p), "neither params nor params_ema"),
        (lambda p: torch.save({"params": {"a": torch.ones(1)}}, p), "not the weights of a DFT"),
        (lambda p: torch.save({"params": {"a": 3}}, p), "neither params nor params_ema"),
        (lambda p: p.mkdir(), "a folder, not a checkpoint"),
        (lambda p: None, "no such checkpoint"),
        (lambda p: os.mkfifo(p, 0o600), "a pipe or a device, not a checkpoint"),
    ],
)
def test_files_that_are_not_checkpoints_are_refused(tmp_path, write, words):
    path = tmp_path / "x.pt"
    write(path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"), [("a.pt", "download"), ("a", "download"), ("a.yaml", "give a .pt")]
)
@pytest.mark.parametrize("text", ["extends: tiny", "# für Regen: die Einstellungen"])
def test_a_text_file_is_downloaded_again_only_if_it_is_named_like_weights(
    tmp_path, name, hint, text
):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / name)
    assert str(caught.value.hint).startswith(hint)


def test_a_truncated_file_is_refused(saved):
    path, _ = saved
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(path)


def test_an_archive_that_unpacks_to_much_more_is_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\0" * (8 << 20))
    with pytest.raises(CheckpointError, match="archive is compressed"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ("not json", "not JSON text"),
        (3, "not JSON text"),
        ("[]", "not JSON text"),
        ("{}", "not JSON text"),
        ('{"format_version": 99}', "format version 99"),
        ('{"format_version": 1}', "its metadata"),
        (
            '{"format_version": 1, "network": {"dim": 99999}, "diffusion": {}, "x": 1}',
            "its metadata",
        ),
        ('{"format_version": 1, "network": {"dimm": 8}, "diffusion": {}}', "its metadata"),
        (
            '{"format_version": 1, "network": {"dim": 8}, "diffusion": {}, "grid": [1, 5]}',
            "descend",
        ),
        (
            '{"format_version": 1, "network": {}, "diffusion": {}, "data_val": "\\u001b"}',
            "data_val must",
        ),
        (
            '{"format_version": 1, "network": {}, "diffusion": {}, "data": {"a": 1}}',
            "data must be a valid string",
        ),
        ('{"format_version": 1, "network": {"blocks": [1, 1, 1, 999]}, "diffusion": {}}', "meta"),
        (
            '{"format_version": 1, "network": {}, "stage": "banana"}',
            "stage must be 'coarse', 'fine' or 'released', got 'banana'",
        ),
        (
            '{"format_version": 1, "network": {}, "grid_from": "moon"}',
            "grid_from must be 'recipe', 'sweep' or 'training', got 'moon'",
        ),
    ],
)
def test_impossible_metadata_are_refused(saved, meta, words):
    path, _ = saved
    rewrite(path, meta=meta)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert words in str(caught.value)


def test_metadata_that_are_too_long_are_refused(saved, monkeypatch):
    monkeypatch.setattr("c2fdft_cli.engine.weights.checkpoint.MAX_META_BYTES", 100)
    with pytest.raises(CheckpointError, match="its metadata is not JSON text"):
        load_checkpoint(saved[0])


def test_edited_metadata_are_read_or_refused_in_one_line():
    """If they are read, recipe, network, noise schedule and timesteps can be used."""
    recipe = load_recipe("tiny").to_dict()
    meta = Meta(SMALL, stage="fine", grid=[999, 500], recipe=recipe, metrics={"psnr": 30.0})
    read = refused = 0
    for odd in odd_documents(json.loads(meta.to_json())):
        try:
            found = Checkpoint(Path("odd.pt"), {}, {}, read_meta(json.dumps(odd), Path("odd.pt")))
            found.recipe([])
            found.task()
            found.timesteps()
            found.alpha_bar()
            if found.meta.network != SMALL:
                misfit = "the weights do not fit|the weights of another network"
                with pytest.raises(CheckpointError, match=misfit):
                    found.network()
            read += 1
        except (CheckpointError, RecipeError):
            refused += 1
    assert read > 200
    assert refused > 1000


@pytest.mark.parametrize("text", ["[" * 100_000, '{"step": ' + "1" * 5000 + "}"])
def test_metadata_with_deep_nesting_or_a_huge_number_are_refused(text):
    with pytest.raises(CheckpointError, match="its metadata is not JSON text"):
        read_meta(text, Path("odd.pt"))


def test_weights_that_do_not_fit_the_network_are_refused(saved):
    path, net = saved
    state = net.state_dict()
    state["output.weight"] = torch.zeros(3, 2, 3, 3)
    del state["latent.0.attn.temperature"]
    state["extra"] = torch.zeros(1)
    rewrite(path, params=state, params_ema=state)
    with pytest.raises(CheckpointError, match="do not fit") as caught:
        load_checkpoint(path).network()
    told = "\n".join(caught.value.details)
    for words in (
        "missing: latent.0.attn.temperature",
        "unexpected: extra",
        "output.weight: the shape must be",
    ):
        assert words in told


def test_a_failed_save_keeps_the_old_file(saved, monkeypatch):
    path, net = saved
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        save_checkpoint(path, net.state_dict(), net.state_dict(), Meta(SMALL))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
