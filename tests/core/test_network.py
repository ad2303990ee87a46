"""The network equals the official program's outputs, and refuses invalid sizes and inputs."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from c2fdft_cli.core.network import DFT, pad_to_multiple, padded_side, time_embedding
from tests.kit.formula import fill, relative, wave
from tests.kit.networks import NETWORKS
from tests.kit.textbook import Textbook


@pytest.mark.parametrize("case", ["tiny", "tiny_bias_free", "official_derain", "official_denoise"])
def test_outputs_equal_the_released_ones(ramp, case):
    numbers = ramp[case]
    net = fill(DFT(**numbers["network"]))
    assert sum(p.numel() for p in net.parameters()) == numbers["parameters"]
    assert len(net.state_dict()) == numbers["tensors"]
    with torch.inference_mode():
        output = net(wave(numbers["shape"], 0.13), torch.tensor(numbers["t"]))
    assert relative(output, numbers["output"]) < 1e-5


@pytest.mark.parametrize("kind", NETWORKS)
def test_outputs_and_gradients_equal_those_of_the_network_written_down_plainly(kind):
    options = asdict(NETWORKS[kind])
    net, plain = fill(DFT(**options)), Textbook(**options)
    plain.load_state_dict(net.state_dict(), strict=True)
    x, t = wave([2, 6, 24, 16], 0.21), torch.tensor([5.0, 700.0])
    found, expected = net(x, t), plain(x, t)
    assert relative(found, expected) < 1e-5
    for eps_hat in (found, expected):
        (eps_hat * wave(eps_hat.shape, 0.7)).sum().backward()
    gradients = dict(plain.named_parameters())
    for name, parameter in net.named_parameters():
        assert relative(parameter.grad, gradients[name].grad) < 1e-3, name


def test_the_official_networks_have_their_published_size():
    with torch.device("meta"):
        with_bias, bias_free = DFT(), DFT(norm="bias_free")
    assert sum(p.numel() for p in with_bias.parameters()) == 25_363_344
    assert len(with_bias.state_dict()) == 410
    assert sum(p.numel() for p in bias_free.parameters()) == 25_349_136
    assert len(bias_free.state_dict()) == 330


def test_the_time_embedding_equals_the_released_one(misc):
    times = torch.tensor([0.0, 1.0, 333.0, 666.0, 999.0])
    for width in (16, 48, 96, 384):
        expected = misc["arrays"][f"embedding.{width}"]
        assert relative(time_embedding(times, width), expected) < 1e-6


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_shared_time_equals_one_time_per_image(kind):
    net, x = fill(DFT(**asdict(NETWORKS[kind]))), wave([3, 6, 16, 24], 0.21)
    with torch.inference_mode():
        shared = net(x, torch.tensor([333.0]).expand(3))
        filled = net(x, torch.full((3,), 333.0))
    assert relative(shared, filled) < 1e-5


def test_batch_rows_are_independent(tiny_net):
    net, x, t = tiny_net(), wave([2, 6, 16, 16], 0.21), torch.tensor([5.0, 700.0])
    with torch.inference_mode():
        together = net(x, t)
        apart = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(2)])
    assert relative(together, apart) < 1e-5


@pytest.mark.parametrize("dual_pixel", [False, True])
def test_bf16_keeps_the_output_in_float32(tiny_net, dual_pixel):
    """The last convolution runs in float32 too, not only the addition of the image."""
    net, x = tiny_net(dual_pixel=dual_pixel), wave([1, 6, 32, 32], 0.21)
    seen = []
    net.output.register_forward_hook(lambda _, given, made: seen.append(made.dtype))
    with torch.inference_mode():
        exact = net(x, torch.tensor([500.0]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = net(x, torch.tensor([500.0]))
    assert [rough.dtype, *seen] == [torch.float32] * 3
    # without the image in the output the relative error is larger
    assert relative(rough, exact) < (0.1 if dual_pixel else 0.03)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 8), (7, 65), (8, 16), (5, 4)])
def test_padding_covers_every_size(shape):
    x = wave([1, 3, *shape], 0.3)
    padded = pad_to_multiple(x)
    assert padded.shape[-2] % 8 == 0
    assert padded.shape[-1] % 8 == 0
    assert torch.equal(padded[..., : shape[0], : shape[1]], x)


def test_padding_reflects_if_the_image_is_wide_enough():
    x = torch.arange(7.0).expand(1, 1, 8, 7)
    assert pad_to_multiple(x)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 5]
    narrow = torch.arange(3.0).expand(1, 1, 8, 3)
    assert pad_to_multiple(narrow)[0, 0, 0].tolist() == [0, 1, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"norm": "batch"}, "with_bias or bias_free, got .batch."),
        ({"blocks": (1, 1)}, "4 levels"),
        ({"blocks": (1, 0, 1, 1)}, "at least 1"),
        ({"heads": (1, 0, 4, 8)}, "at least 1"),
        ({"dim": 7}, "dim must be even"),
        ({"dim": 2}, "at least 4"),
        ({"heads": (3, 2, 4, 8)}, "3 heads do not divide width 8"),
        ({"ffn_factor": 0.01}, "no hidden channel"),
    ],
)
def test_impossible_network_sizes_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        DFT(**{"dim": 8, "blocks": (1, 1, 1, 1), **arguments})


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([1, 6, 12, 16], r"multiples of 8, got \[12, 16\]"),
        ([1, 5, 16, 16], r"\[n, 6, h, w\]"),
        ([6, 16, 16], "got"),
    ],
)
def test_inputs_of_the_wrong_shape_are_refused(tiny_net, shape, words):
    with pytest.raises(ValueError, match=words):
        tiny_net()(torch.zeros(shape), torch.zeros(1))


@pytest.mark.parametrize(("side", "padded"), [(1, 8), (8, 8), (9, 16), (720, 720), (1081, 1088)])
def test_sides_are_padded_to_a_multiple(side, padded):
    assert padded_side(side) == padded
