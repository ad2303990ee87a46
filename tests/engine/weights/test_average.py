"""The mean of the weights of several trainings, and weights that have no mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.weights.average import average, parse_shares
from c2fdft_cli.engine.weights.checkpoint import Meta, load_checkpoint, save_checkpoint
from c2fdft_cli.errors import CheckpointError, UsageError
from c2fdft_cli.recipe.schema import Diffusion, Network, Recipe


def write(path: Path, net: DFT, value: float, **said: Any) -> Path:
    """Write a checkpoint whose EMA weights all have one value and its raw weights another."""
    network = Network(dim=net.dim, blocks=[1, 1, 1, 1])
    meta = Meta(**{"network": network, "stage": "fine", "grid": [500], "step": 7, **said})
    states = [
        {name: torch.full_like(one, number) for name, one in net.state_dict().items()}
        for number in (99.0, value)
    ]
    save_checkpoint(path, *states, meta)
    return path


@pytest.fixture
def net(tiny_net: Callable[..., DFT]) -> DFT:
    return tiny_net()


@pytest.mark.parametrize(
    ("shares", "mean"),
    [
        (None, 2.0),
        ([3, 1], 1.5),
        ([0.25, 0.75], 2.5),
        ([1e-300, 1e300], 3.0),
        ([1e308, 1e308], 2.0),  # their sum is infinite
    ],
)
def test_the_mean_is_that_of_the_ema_weights(
    shares: list[float] | None, mean: float, net: DFT, tmp_path: Path
) -> None:
    recipe = Recipe(task="denoise").to_dict()
    one = write(tmp_path / "1.pt", net, 1, recipe=recipe, metrics={"psnr": 30})
    three = write(tmp_path / "3.pt", net, 3, recipe=recipe)
    out = tmp_path / "new" / "mean.pt"
    said = average([one, three], out, shares)
    assert sum(said.values()) == pytest.approx(1)
    assert list(said) == [str(one), str(three)]
    found = load_checkpoint(out)
    for state in (found.ema, found.params):
        assert all((tensor == mean).all() for tensor in state.values())
    assert (found.timesteps(), found.task(), found.meta.stage) == ([500], "denoise", "fine")
    assert (found.meta.step, found.meta.metrics) == (0, {})


def test_the_shares_of_a_repeated_checkpoint_add_up(net: DFT, tmp_path: Path) -> None:
    one, four = write(tmp_path / "1.pt", net, 1), write(tmp_path / "4.pt", net, 4)
    said = average([one, four, one], tmp_path / "mean.pt")
    assert said == pytest.approx({str(one): 2 / 3, str(four): 1 / 3})
    assert all((tensor == 2).all() for tensor in load_checkpoint(tmp_path / "mean.pt").ema.values())


def test_rounding_errors_do_not_accumulate(net: DFT, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{k}.pt", net, 0.1) for k in range(5)]  # in float32 they do
    average(files, tmp_path / "mean.pt")
    found = load_checkpoint(tmp_path / "mean.pt")
    assert all((tensor == torch.tensor(0.1)).all() for tensor in found.ema.values())


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"stage": "coarse"}, "stage"),
        ({"grid": [400]}, "timesteps"),
        ({"diffusion": Diffusion(timesteps=2000)}, "noise schedule"),
        ({"recipe": Recipe(task="deblur").to_dict()}, "task"),
        ({"recipe": {"sampling": {"eta": 0.5}}}, "sampling.eta"),
        ({"network": Network(dim=8, blocks=[1, 1, 1, 1], ffn_factor=2.5)}, "network"),
    ],
)
def test_checkpoints_that_differ_have_no_mean(
    said: dict[str, Any], what: str, net: DFT, tmp_path: Path
) -> None:
    files = [write(tmp_path / "1.pt", net, 1), write(tmp_path / "2.pt", net, 2, **said)]
    with pytest.raises(CheckpointError, match=f"2.pt: it differs in its {what} from .*1.pt"):
        average(files, tmp_path / "mean.pt")
    assert not (tmp_path / "mean.pt").exists()


def test_checkpoints_with_other_tensors_have_no_mean(
    net: DFT, tiny_net: Callable[..., DFT], tmp_path: Path
) -> None:
    """The metadata state the same network, but the files hold other tensors."""
    one, other = write(tmp_path / "1.pt", net, 1), write(tmp_path / "2.pt", net, 1)
    content = torch.load(other, weights_only=True)
    content["params_ema"]["output.weight"] = torch.ones(1)
    torch.save(content, other)
    with pytest.raises(CheckpointError, match=r"2\.pt"):
        average([one, other], tmp_path / "mean.pt")


@pytest.mark.parametrize(
    ("shares", "text"),
    [
        ([1], "--shares must be 2 numbers, one for each checkpoint, got 1"),
        ([1, 0], "--shares must be positive numbers, got 1, 0"),
        ([1, -1], "positive numbers, got 1, -1"),
        ([1, float("nan")], "positive numbers, got 1, nan"),
        ([1, float("inf")], "positive numbers, got 1, inf"),
    ],
)
def test_invalid_shares_are_refused(
    shares: list[float], text: str, net: DFT, tmp_path: Path
) -> None:
    files = [write(tmp_path / f"{k}.pt", net, k) for k in (1, 2)]
    with pytest.raises(UsageError, match=text):
        average(files, tmp_path / "mean.pt", shares)


def test_a_file_is_replaced_only_if_requested(net: DFT, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{k}.pt", net, k) for k in (1, 2)]
    other = write(tmp_path / "other.pt", net, 7)
    before = other.read_bytes()
    with pytest.raises(UsageError, match="already exists") as error:
        average(files, other)
    assert error.value.hint == "use --overwrite to replace it"
    assert other.read_bytes() == before
    with pytest.raises(UsageError, match="is a folder"):
        average(files, tmp_path, overwrite=True)
    average(files, other, overwrite=True)
    assert load_checkpoint(other).ema["output.weight"].unique().tolist() == [1.5]


def test_no_input_is_replaced(net: DFT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = [write(tmp_path / f"{k}.pt", net, k) for k in (1, 2)]
    before = [path.read_bytes() for path in files]
    Path("link.pt").symlink_to("2.pt")
    for out in ("1.pt", "link.pt", f"../{tmp_path.name}/2.pt"):
        with pytest.raises(UsageError, match="this output would replace an input") as caught:
            average(files, Path(out), overwrite=True)
        assert caught.value.hint == "name another file with --out"
    assert [path.read_bytes() for path in files] == before


def test_a_mean_cannot_be_written_as_onnx(net: DFT, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.pt", net, 1) for name in "ab"]
    with pytest.raises(UsageError, match="not as ONNX"):
        average(files, tmp_path / "mean.onnx")
    assert not (tmp_path / "mean.onnx").exists()


@pytest.mark.parametrize("name", ["mean.png", "mean", "mean.pt.bak"])
def test_a_mean_has_the_suffix_of_a_checkpoint(name: str, net: DFT, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{one}.pt", net, 1) for one in "ab"]
    with pytest.raises(UsageError, match="the suffix is not that of a checkpoint") as caught:
        average(files, tmp_path / name)
    assert caught.value.hint == "use .pt, .ckpt, .pth, .safetensors"
    assert average(files, tmp_path / "mean.PT")


def test_one_checkpoint_or_a_missing_one_is_refused(net: DFT, tmp_path: Path) -> None:
    one = write(tmp_path / "1.pt", net, 1)
    with pytest.raises(UsageError, match="two checkpoints or more, got 1"):
        average([one], tmp_path / "mean.pt")
    (tmp_path / "link.pt").symlink_to(one)
    with pytest.raises(UsageError, match="two checkpoints or more, got 1, named 3 times"):
        average([one, one, tmp_path / "link.pt"], tmp_path / "mean.pt")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        average([one, tmp_path / "2.pt"], tmp_path / "mean.pt")


def test_shares_are_parsed() -> None:
    assert parse_shares("0.7, 0.3") == [0.7, 0.3]
    with pytest.raises(UsageError, match="must be numbers separated by commas, got 1,half"):
        parse_shares("1,half")
