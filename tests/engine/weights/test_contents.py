"""Weights of other programs: wrapped, prefixed, with optimisers and Python objects."""

from __future__ import annotations

import argparse
import collections
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.engine.weights.checkpoint import besides_weights, load_checkpoint
from c2fdft_cli.engine.weights.contents import FIRST_WEIGHT, plain_name, weights_in
from c2fdft_cli.engine.weights.stored import open_stored
from c2fdft_cli.engine.weights.tensors import save_safetensors
from c2fdft_cli.errors import CheckpointError
from c2fdft_cli.recipe.schema import Network
from tests.kit.formula import fill


@pytest.fixture(scope="module")
def raw():
    return dict(fill(make_network(Network(dim=8, blocks=[1, 1, 1, 1]))).state_dict())


@pytest.fixture(scope="module")
def ema(raw):
    return {name: 0.5 * tensor for name, tensor in raw.items()}


@pytest.fixture
def saved(tmp_path):
    def save(content, **options):
        torch.save(content, tmp_path / "x.pth", **options)
        return tmp_path / "x.pth"

    return save


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


OTHER = "these are the weights of another network"
DAMAGED = "the weights do not fit"


@pytest.mark.parametrize(
    ("change", "says", "hint"),
    [
        ({"extra.buffer": torch.ones(3)}, OTHER, "without the unexpected tensors"),
        ({FIRST_WEIGHT: torch.ones(8, 3, 3, 3)}, OTHER, "give weights of C2F-DFT"),
        ({"output.weight": None}, DAMAGED, "get it again"),
        ({"output.weight": torch.ones(3, 2, 3, 3)}, DAMAGED, "get it again"),
    ],
)
def test_another_network_is_not_called_damaged(raw, saved, change, says, hint):
    state = {name: value for name, value in {**raw, **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=says) as caught:
        load_checkpoint(saved(state)).network()
    assert hint in caught.value.hint
    assert len(caught.value.details) == 1


def test_a_list_of_misfits_that_is_cut_ends_with_their_numbers(raw, saved):
    state = {**raw, **{f"extra.{i}": torch.ones(1) for i in range(12)}}
    del state["output.weight"]
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(saved(state)).network()
    *shown, last = caught.value.details
    assert shown[0] == "missing: output.weight"
    assert len(shown) == 10
    assert last == "in all: 1 names missing, 12 unexpected, 0 tensors of another shape"


def test_counts_of_a_profiler_are_ignored(raw, saved):
    counts = {f"{name.rpartition('.')[0]}.total_ops": torch.zeros(1) for name in raw}
    counts |= {"total_ops": torch.zeros(1), "total_params": torch.zeros(1, dtype=torch.int64)}
    assert same(load_checkpoint(saved({**counts, **raw})).network().state_dict(), raw)
    # they are not weights, so that a command that stores timesteps would lose them
    assert "total_ops" in besides_weights(saved({**counts, **raw}))


def test_a_tensor_of_other_numbers_has_a_hint(raw, saved):
    with pytest.raises(CheckpointError, match=r"opt\.step does not hold plain") as caught:
        load_checkpoint(saved({**raw, "opt.step": torch.tensor(3)}))
    assert "the network's weights alone" in caught.value.hint


def named(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


KEYS = ["state_dict", "model", "net", "params", "params_ema", "weights", None]
PREFIXES = [
    "",
    "module.",
    "_orig_mod.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "module.module.",
    "model.",
    "net.",
    "model.module._orig_mod.",
    "netG.",
]


@pytest.mark.parametrize(
    ("key", "prefix"),
    dict.fromkeys(
        [
            *itertools.product(KEYS, ["", "module.", "net."]),
            *itertools.product(["model", None], PREFIXES),
        ]
    ),
)
def test_weights_are_found_by_keys_and_prefixes(saved, raw, key, prefix):
    state = named(prefix, raw)
    checkpoint = load_checkpoint(saved(state if key is None else {key: state, "epoch": 3}))
    assert same(checkpoint.ema, raw)
    assert same(checkpoint.params, raw)
    assert next(checkpoint.network().parameters()).dtype == torch.float32


def test_prefixes_of_wrappers_are_removed():
    assert plain_name("module._orig_mod.latent.0._orig_mod.attn") == "latent.0.attn"
    assert plain_name("_fsdp_wrapped_module.a._checkpoint_wrapped_module.b") == "a.b"


def test_names_of_blocks_compiled_one_by_one_are_recognised(saved, raw):
    odd = {name.replace("latent.0.", "latent.0._orig_mod."): t for name, t in raw.items()}
    assert same(load_checkpoint(saved({"state_dict": odd})).ema, raw)


def test_a_checkpoint_of_lightning_is_read(saved, raw, ema):
    content = {
        "epoch": 9,
        "global_step": 12345,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": {
            **named("net.", raw),
            **named("net_ema.module.", ema),
            "net_ema.n_averaged": torch.tensor(5),
            "loss.vgg.features.0.weight": torch.ones(3),
        },
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'psnr'}": {"dirpath": Path("a/b")}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{}]}],
        "lr_schedulers": [{"milestones": collections.Counter([1, 2])}],
        "hparams_name": "kwargs",
        "hyper_parameters": argparse.Namespace(lr=np.float64(1e-4), out=Path("x")),
    }
    checkpoint = load_checkpoint(saved(content))
    assert same(checkpoint.params, raw)
    assert same(checkpoint.ema, ema)


def test_checkpoints_of_mprnet_and_restormer_are_read(saved, raw):
    optimizer = torch.optim.AdamW(torch.nn.Linear(2, 2).parameters())
    content = {"epoch": 3, "state_dict": named("module.", raw), "optimizer": optimizer.state_dict()}
    assert same(load_checkpoint(saved(content)).ema, raw)
    assert same(load_checkpoint(saved({"params": raw})).ema, raw)


def test_a_checkpoint_of_mmcv_is_read(saved, raw):
    content = {"meta": {"epoch": 3, "mmcv_version": "1.7"}, "state_dict": named("generator.", raw)}
    checkpoint = load_checkpoint(saved(content))
    assert same(checkpoint.ema, raw)
    assert checkpoint.meta.stage == "released"


@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_beside_the_weights_are_skipped(saved, raw, protocol):
    content = {
        "model": raw,
        "args": argparse.Namespace(lr=1e-4, gpus=[0, 1], out=Path("runs")),
        "path": Path("/somewhere/else"),
        "best": np.float64(31.2),
        "psnr": np.arange(3),
        "seen": {1, 2},
        "type": np.dtype("float32"),
        "rate": collections.defaultdict(list, {"lr": [1.0]}),
        "loss": torch.nn.L1Loss(),
    }
    assert same(load_checkpoint(saved(content, pickle_protocol=protocol)).ema, raw)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]
)
def test_other_precisions_become_float32(saved, raw, dtype):
    cast = {name: tensor.to(dtype) for name, tensor in raw.items()}
    expected = {name: tensor.float() for name, tensor in cast.items()}
    assert same(load_checkpoint(saved({"state_dict": cast})).ema, expected)


@pytest.mark.parametrize(
    "key",
    ["params_ema", "model_ema", "ema_state_dict", "ema", "EMA", "netEMA", "emaModel", "EMAModel"],
)
def test_averaged_weights_are_recognised_by_name(saved, raw, ema, key):
    checkpoint = load_checkpoint(saved({"params": raw, key: ema}))
    assert same(checkpoint.params, raw)
    assert same(checkpoint.ema, ema)


@pytest.mark.parametrize("key", ["schema", "emanation", "netEmanation"])
def test_ema_within_a_word_marks_nothing(saved, raw, key):
    with open_stored(saved({key: raw})) as file:
        assert list(weights_in(file)[0]) == ["raw"]


def test_the_network_beside_its_average_is_the_raw_one(saved, raw, ema):
    both = {**named("online_model.", raw), **named("ema_model.", ema), "step": torch.tensor(4)}
    checkpoint = load_checkpoint(saved({"model": raw, "ema": both}))
    assert same(checkpoint.params, raw)
    assert same(checkpoint.ema, ema)


def test_several_sets_are_refused_and_listed(saved, raw, ema):
    with pytest.raises(CheckpointError, match="holds several sets of weights") as caught:
        load_checkpoint(saved({"student": raw, "teacher": ema}))
    assert caught.value.details == ("student", "teacher")
    assert "torch.save(content['teacher'], 'weights.pth')" in caught.value.hint


def test_the_hint_on_several_sets_is_code_that_saves_one(saved, raw, ema, tmp_path, monkeypatch):
    path = saved({"student": raw, "b": {**named("teacher.", ema), "step": torch.tensor(1)}})
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert caught.value.details == ("student", "b.teacher")
    monkeypatch.chdir(tmp_path)
    code = caught.value.hint.partition("for example ")[2]
    exec(code, {"torch": torch, "content": torch.load(path, weights_only=True)})
    assert same(load_checkpoint(tmp_path / "weights.pth").ema, ema)


def test_equal_sets_count_as_one(saved, raw):
    assert same(load_checkpoint(saved({"model": raw, "state_dict": raw})).ema, raw)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (torch.nn.Linear(2, 2), "a whole Python object (torch.nn.modules.linear.Linear)"),
        (
            {"model": torch.nn.Linear(2, 2)},
            "Python objects (torch.nn.modules.linear.Linear) and no",
        ),
        (argparse.Namespace(a=1), "it is a whole Python object (argparse.Namespace)"),
    ],
)
def test_pickled_modules_are_refused_with_a_hint(saved, content, says):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(saved(content))
    assert says in str(caught.value)
    assert "torch.save(model.state_dict(), 'weights.pth')" in caught.value.hint


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["params", "params_ema"])
def test_weights_that_are_not_numbers_are_refused(saved, raw, key, number):
    broken = dict(raw)
    broken["output.weight"] = torch.full_like(raw["output.weight"], number)
    with pytest.raises(
        CheckpointError, match=r"NaN or infinite values in output\.weight"
    ) as caught:
        load_checkpoint(saved({"params": raw, "params_ema": raw, key: broken}))
    assert "use an earlier checkpoint" in caught.value.hint


def test_numbers_beyond_float32_are_not_called_a_diverged_training(saved, raw):
    large = {name: tensor.double() * 1e300 for name, tensor in raw.items()}
    with pytest.raises(CheckpointError, match="float32 cannot represent") as caught:
        load_checkpoint(saved(large))
    assert "diverged" not in (caught.value.hint or "")


def test_weights_of_another_network_are_refused(saved):
    content = {"state_dict": {"conv.weight": torch.ones(3), "conv.bias": torch.ones(1)}}
    with pytest.raises(CheckpointError, match="not the weights of a DFT"):
        load_checkpoint(saved(content))


@pytest.mark.parametrize("shape", [(), (0,), (8,), (0, 0, 0, 0), (8, 6, 3, 3, 1, 1)])
@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "latent.0.ffn.project_in.weight"])
def test_weights_of_odd_shapes_are_refused(saved, raw, name, shape):
    with pytest.raises(CheckpointError):
        load_checkpoint(saved(raw | {name: torch.zeros(shape)})).network()


def test_safetensors_of_other_programs_are_read(tmp_path, raw, ema):
    library = pytest.importorskip("safetensors.torch")
    path = tmp_path / "x.safetensors"
    library.save_file({**named("model.", raw), **named("model_ema.", ema)}, path)
    checkpoint = load_checkpoint(path)
    assert same(checkpoint.params, raw)
    assert same(checkpoint.ema, ema)


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_the_metadata_of_a_safetensors_file_name_its_set(tmp_path, raw, weights):
    pytest.importorskip("safetensors")
    path = tmp_path / "x.safetensors"
    save_safetensors(path, raw, "{}", weights)
    with open_stored(path) as file:
        assert list(weights_in(file)[0]) == [weights]


def test_another_weight_with_the_same_ending_is_not_a_set(saved, raw):
    name = "patch_embed.proj.weight"
    checkpoint = load_checkpoint(saved(raw | {f"other_{name}": torch.ones(1)}))
    assert torch.equal(checkpoint.ema[name], raw[name])


def test_thousands_of_candidate_sets_are_refused_quickly(saved):
    names = {f"{i}.patch_embed.proj.weight": torch.ones(1) for i in range(2_000)}
    with pytest.raises(CheckpointError, match=r"several sets"):
        load_checkpoint(saved(names))
