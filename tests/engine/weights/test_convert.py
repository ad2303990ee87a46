"""Conversion between formats: bit-exact unless cast, and safe on hostile files."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from c2fdft_cli.engine.tools.info import describe
from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.engine.weights.checkpoint import (
    Meta,
    load_checkpoint,
    save_checkpoint,
    versions,
)
from c2fdft_cli.engine.weights.convert import convert
from c2fdft_cli.engine.weights.convert_options import ConvertOptions
from c2fdft_cli.errors import CheckpointError, ResourceError, UsageError
from c2fdft_cli.recipe.schema import Diffusion, Network, Recipe, Sampling
from tests.kit.formula import fill

SMALL = Network(dim=8, blocks=[1, 1, 1, 1])


@pytest.fixture(scope="module")
def ema():
    return fill(make_network(SMALL)).state_dict()


@pytest.fixture
def ours(tmp_path, ema):
    raw = {name: 0.9 * tensor for name, tensor in ema.items()}
    meta = Meta(SMALL, stage="fine", step=9, grid=[999, 500], data="sets/rain", data_val="b" * 64)
    meta.recipe = Recipe(network=SMALL).to_dict()
    save_checkpoint(tmp_path / "ours.pt", raw, ema, meta)
    return tmp_path / "ours.pt"


def made(source, name, **options):
    return convert(source, source.parent / name, ConvertOptions(**options)).out


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_an_official_checkpoint_is_converted_and_back(tmp_path, ours):
    released = made(ours, "net_g.pth")
    back = made(made(released, "again.pt"), "again.pth")
    first, last = (torch.load(p, weights_only=True) for p in (released, back))
    assert set(first) == set(last) == {"params", "params_ema"}
    assert all(same(first[key], last[key]) for key in first)
    before = load_checkpoint(ours)
    assert same(before.params, last["params"])
    assert same(before.ema, last["params_ema"])


@pytest.mark.parametrize("keys", [("params",), ("params_ema",), ()])
def test_official_files_with_one_set_of_weights(tmp_path, ema, keys):
    source = tmp_path / "net_g.pth"
    torch.save(dict.fromkeys(keys, ema) or ema, source)
    checkpoint = load_checkpoint(made(source, "new.pt"))
    assert same(checkpoint.ema, ema)
    assert same(checkpoint.params, ema)
    assert checkpoint.meta.stage == "released"
    assert checkpoint.meta.network == SMALL
    assert checkpoint.meta.versions == versions()


@pytest.mark.parametrize(("kind", "key"), [("raw", "params"), ("ema", "params_ema")])
def test_the_only_set_of_a_file_is_not_stored_as_the_other(tmp_path, ema, kind, key):
    pytest.importorskip("safetensors")
    source = tmp_path / "net_g.pth"
    torch.save({key: ema}, source)
    for name, options in (
        ("a.pt", {}),
        ("b.pt", {"ema_only": True}),
        ("a.safetensors", {}),
        ("b.safetensors", {"raw": True}),
    ):
        done = convert(source, tmp_path / name, ConvertOptions(**options))
        loaded = load_checkpoint(done.out)
        assert done.sets == list(loaded.sets) == [kind]
        assert same(loaded.network("raw").state_dict(), loaded.network("ema").state_dict())
    assert set(torch.load(tmp_path / "a.pt", weights_only=True)) == {key, "meta"}
    official = convert(source, tmp_path / "b.pth", ConvertOptions())
    assert official.sets == [kind]
    assert set(torch.load(official.out, weights_only=True)) == {"params", "params_ema"}


@pytest.mark.parametrize("key", ["params", "params_ema"])
def test_a_file_in_which_either_set_does_not_fit_is_refused(ours, key):
    content = torch.load(ours, weights_only=True)
    content[key]["output.weight"] = torch.ones(1)
    torch.save(content, ours)
    for options in ({}, {"ema_only": True}):
        with pytest.raises(CheckpointError, match=r"ours\.pt: the weights do not fit the network"):
            made(ours, "new.pt", **options)
    assert not ours.with_name("new.pt").exists()


def test_losses_in_the_official_format_are_noted(ours):
    done = convert(ours, ours.with_name("a.pth"), ConvertOptions())
    assert done.left_out == [
        "grid [999, 500]",
        "stage fine",
        "step 9",
        "recipe unnamed",
        "data sets/rain",
        "fingerprints bbbbbbbb",
        f"versions {', '.join(f'{name} {one}' for name, one in versions().items())}",
    ]
    assert done.grid == [999, 500]
    assert done.parameters == sum(t.numel() for t in load_checkpoint(ours).ema.values())


def test_eta_lost_in_the_official_format_is_noted(ours):
    meta = load_checkpoint(ours).meta
    meta.recipe = Recipe(network=SMALL, sampling=Sampling(eta=0.5)).to_dict()
    state = load_checkpoint(ours).ema
    save_checkpoint(ours, state, state, meta)
    done = convert(ours, ours.with_name("a.pth"), ConvertOptions())
    assert done.eta == 0.5
    assert "eta 0.5" in done.left_out


def test_an_official_checkpoint_loses_nothing_in_its_own_format(ours):
    released = made(ours, "a.pth")
    assert convert(released, ours.with_name("b.pth"), ConvertOptions()).left_out == []


def test_a_noise_schedule_lost_in_the_official_format_is_noted(tmp_path, ema):
    # restoring with the new file would use the default and give other pictures
    meta = Meta(SMALL, Diffusion("sigmoid", timesteps=500))
    save_checkpoint(tmp_path / "ours.pt", ema, ema, meta)
    done = convert(tmp_path / "ours.pt", tmp_path / "a.pth", ConvertOptions())
    said = "noise schedule sigmoid, 500 timesteps, beta from 0.0001 to 0.02"
    assert said in done.left_out
    assert load_checkpoint(done.out).meta.diffusion == Diffusion()


def test_a_checkpoint_keeps_its_metadata(ours):
    content = torch.load(ours, weights_only=True)
    content["meta"] = json.dumps({**json.loads(content["meta"]), "versions": {"c2fdft": "0.1"}})
    torch.save(content, ours)
    done = convert(ours, ours.with_name("b.pt"), ConvertOptions())
    assert load_checkpoint(done.out).meta == load_checkpoint(ours).meta
    assert load_checkpoint(done.out).meta.versions == {"c2fdft": "0.1"}
    assert done.left_out == []


@pytest.mark.parametrize(
    ("name", "options", "sets"),
    [
        ("a.pt", {}, ["raw", "ema"]),
        ("a.pt", {"ema_only": True}, ["ema"]),
        ("a.safetensors", {}, ["ema"]),
        ("a.safetensors", {"raw": True}, ["raw"]),
    ],
)
def test_the_sets_of_weights_in_a_file_are_named(ours, name, options, sets):
    if name.endswith(".safetensors"):
        pytest.importorskip("safetensors")
    assert convert(ours, ours.with_name(name), ConvertOptions(**options)).sets == sets


@pytest.mark.parametrize(("half", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_and_ema_only(ours, ema, half, dtype):
    path = made(ours, "half.pt", half=half, ema_only=True)
    assert set(torch.load(path, weights_only=True)) == {"params_ema", "meta"}
    numbers = sum(tensor.numel() for tensor in ema.values())
    assert path.stat().st_size < 2 * numbers + 60_000
    checkpoint = load_checkpoint(path)
    assert same(checkpoint.ema, {name: t.to(dtype).float() for name, t in ema.items()})
    assert checkpoint.params is checkpoint.ema
    assert checkpoint.timesteps() == [999, 500]
    assert describe(path)["parameters"] == numbers
    assert next(checkpoint.network("raw").parameters()).dtype == torch.float32


def test_values_beyond_half_precision_are_refused(tmp_path, ema):
    source = tmp_path / "large.pth"
    torch.save(ema | {"output.weight": ema["output.weight"] + 1e6}, source)
    with pytest.raises(UsageError, match="weight holds numbers that float16 cannot represent"):
        made(source, "half.pt", half="fp16")
    assert not (tmp_path / "half.pt").exists()
    assert made(source, "half.pt", half="bf16").is_file()


def test_a_view_is_stored_without_the_rest_of_its_tensor(tmp_path, ema):
    name = "latent.0.attn.qkv.weight"
    large = torch.cat([ema[name], torch.zeros(4_000_000 // 64, 64, 1, 1)])
    source = tmp_path / "slice.pth"
    torch.save(ema | {name: large[: len(ema[name])]}, source)
    assert made(source, "new.pth").stat().st_size < source.stat().st_size


@pytest.mark.parametrize(("weights", "factor"), [(None, 1.0), ("raw", 0.9)])
def test_safetensors_are_converted_and_back(ours, ema, weights, factor):
    pytest.importorskip("safetensors")
    path = made(ours, "a.safetensors", raw=weights == "raw")
    back = load_checkpoint(made(path, "back.pt"))
    assert same(back.ema, {name: factor * tensor for name, tensor in ema.items()})
    assert back.meta == load_checkpoint(ours).meta
    assert describe(path)["stage"] == "fine"


def test_safetensors_without_meta_under_another_name_in_half(tmp_path, ema):
    torch_form = pytest.importorskip("safetensors.torch")
    path = tmp_path / "weights.bin"
    torch_form.save_file({name: tensor.half() for name, tensor in ema.items()}, path)
    checkpoint = load_checkpoint(path)
    assert checkpoint.meta.stage == "released"
    assert same(checkpoint.ema, {name: tensor.half().float() for name, tensor in ema.items()})


def test_storing_timesteps_in_a_safetensors_file_keeps_its_format(ours, ema):
    pytest.importorskip("safetensors")
    path = made(ours, "a.safetensors")
    meta = load_checkpoint(path).meta
    meta.grid = [700]
    save_checkpoint(path, ema, ema, meta)
    assert load_checkpoint(path).timesteps() == [700]


def header(text, size=None):
    data = text.encode()
    return (len(data) if size is None else size).to_bytes(8, "little") + data


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"hello, I am text", "a text file that begins with 'hello, I am text'"),
        (header('{"a": 1}'), "the file is damaged"),
        (header("{}", size=64 << 20), "header is larger than 32 MiB"),
        (header('{"a":{"dtype":"F32","shape":[99],"data_offsets":[0,396]}}'), "truncated"),
        (header("{}"), "neither params nor params_ema"),
    ],
)
def test_hostile_safetensors_are_refused(tmp_path, content, says):
    pytest.importorskip("safetensors")
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        made(path, "y.pt")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "y.pt").exists()


def test_truncated_safetensors_are_refused(ours):
    pytest.importorskip("safetensors")
    path = made(ours, "a.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(path)


def test_meta_of_a_safetensors_file_is_checked(tmp_path, ema):
    torch_form = pytest.importorskip("safetensors.torch")
    for meta, says in (("[]", "not JSON text"), (" " * (17 << 20), "not JSON text")):
        torch_form.save_file(ema, tmp_path / "x.safetensors", metadata={"c2fdft": meta})
        with pytest.raises(CheckpointError, match=says):
            load_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.zeros(3, 2, 3, 3), "do not fit"),
        (torch.zeros(1, 1, 1, 1).expand(3, 1 << 40, 3, 3), "larger than the file"),
        (torch.zeros(3, 16, 3, 3, dtype=torch.int64), "output.weight does not hold plain"),
        (torch.zeros(3, 16).to_sparse(), "output.weight does not hold plain"),
    ],
)
def test_hostile_tensors_are_refused(tmp_path, ema, tensor, says):
    path = tmp_path / "x.pth"
    torch.save({"params": ema, "params_ema": ema | {"output.weight": tensor}}, path)
    with pytest.raises(CheckpointError) as caught:
        made(path, "y.pt")
    assert says in str(caught.value)
    assert not (tmp_path / "y.pt").exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("safetensors.torch", "x.safetensors"),
        ("onnx", "x.onnx"),
        ("onnxruntime", "x.onnx"),
    ],
)
def test_a_missing_package_is_named(ours, monkeypatch, module, name):
    if name == "x.onnx":
        pytest.importorskip("onnx")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ResourceError) as caught:
        made(ours, name)
    assert module in str(caught.value)
    assert caught.value.hint == "pip install 'c2fdft[export]'"


def test_safetensors_is_read_without_its_package(ours, ema, monkeypatch):
    pytest.importorskip("safetensors")
    path = made(ours, "a.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert same(load_checkpoint(path).ema, ema)


def test_a_file_is_overwritten_only_if_requested(ours):
    path = made(ours, "a.pth")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="already exists"):
        made(ours, "a.pth")
    assert path.read_bytes() == before
    made(ours, "a.pth", overwrite=True, to="checkpoint")
    assert load_checkpoint(path).timesteps() == [999, 500]


@pytest.mark.parametrize("name", ["ours.pt", "link.pt"])
def test_the_source_is_never_replaced(ours, name):
    before = ours.read_bytes()
    if name != "ours.pt":
        ours.with_name(name).symlink_to(ours)
    for form in ("checkpoint", "onnx"):
        with pytest.raises(UsageError, match="would replace its input"):
            made(ours, name, overwrite=True, to=form)
    assert ours.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("a.foo", {}, "the suffix does not determine the format"),
        (
            "a.pt",
            {"to": "tar"},
            "--to must be checkpoint, official, safetensors or onnx, got 'tar'",
        ),
        ("a.pt", {"half": "fp8"}, "--half must be bf16 or fp16, got 'fp8'"),
        ("a.pth", {"half": "bf16"}, "--half cannot be combined with the format official"),
        ("a.onnx", {"half": "bf16"}, "--half cannot be combined with the format onnx"),
        (
            "a.safetensors",
            {"ema_only": True},
            "--ema-only cannot be combined with the format safetensors",
        ),
        ("a.pt", {"raw": True}, "--raw cannot be combined with the format checkpoint"),
        (".", {"to": "checkpoint"}, "is a folder"),
    ],
)
def test_options_that_do_not_fit_the_format_are_refused(ours, name, options, says):
    with pytest.raises(UsageError) as caught:
        made(ours, name, **options)
    assert says in str(caught.value)


def test_onnx_cannot_be_converted_back(tmp_path):
    with pytest.raises(UsageError, match="cannot be converted back"):
        made(tmp_path / "a.onnx", "a.pt")


def test_to_overrides_the_suffix(ours):
    assert set(torch.load(made(ours, "a.bin", to="official"))) == {"params", "params_ema"}


def test_meta_is_json_in_the_file(ours):
    content = torch.load(made(ours, "b.pt"), weights_only=True)
    assert json.loads(content["meta"])["format_version"] == 2
