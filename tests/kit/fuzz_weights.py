"""Fuzz targets: checkpoints and safetensors, damaged as bytes and within their containers."""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import zipfile
from pathlib import Path

import torch

from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.engine.weights.checkpoint import Meta, load_checkpoint, save_checkpoint
from c2fdft_cli.recipe.schema import Network
from tests.kit.formula import fill
from tests.kit.fuzz import NUMBERS, Target, mutate_bytes

SMALL = Network(dim=8, blocks=[1, 1, 1, 1])
TELLING = re.compile(
    r"patch_embed\.proj\.weight"
    r"|(encoder_level[123]|latent)\.0\.(attn\.temperature|ffn\.project_in\.weight)"
)
DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "BOOL", "F4", "", 3, None)
OPCODES = b"(.012FIJKLMNPQRSTUVXabcdeghijlopqrstu}]\x80\x81\x82\x83\x85\x88\x8a\x8b\x8c\x93\x94\x95"


def _states() -> list[dict[str, torch.Tensor]]:
    """The weights of a whole network, and more often only those its shape is inferred from.

    Most damage hits the descriptions of tensors, and reading a few of these takes less time.
    """
    whole = {name: t.bfloat16() for name, t in fill(make_network(SMALL)).state_dict().items()}
    few = {name: t for name, t in whole.items() if TELLING.fullmatch(name)}
    return [whole, *[few] * 11]


def seeds_of_checkpoints(folder: Path) -> list[bytes]:
    """This program's, an official one, and two of other trainers."""
    meta = Meta(SMALL, stage="fine", step=7, grid=[999, 500]).to_json()
    foreign = {
        "args": argparse.Namespace(lr=1e-4, out=Path("runs")),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3), "step": 3}}},
    }
    seeds = []
    for state in _states():
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        for content, options in (
            ({"params_ema": state, "meta": meta}, {}),
            ({"params": state, "params_ema": state}, {}),
            ({"state_dict": wrapped, **foreign}, {"pickle_protocol": 4}),
            ({"params": state, "x": foreign}, {}),
        ):
            file = io.BytesIO()
            torch.save(content, file, **options)
            seeds.append(file.getvalue())
    return seeds


def seeds_of_safetensors(folder: Path) -> list[bytes]:
    """Files with this program's metadata, in float32 and in bfloat16."""
    seeds = []
    for state in _states():
        for dtype in (torch.float32, torch.bfloat16):
            path = folder / "seed.safetensors"
            cast = {name: tensor.to(dtype) for name, tensor in state.items()}
            save_checkpoint(path, cast, cast, Meta(SMALL, grid=[500]))
            seeds.append(path.read_bytes())
    return seeds


def mutate_checkpoint(rng: random.Random, data: bytes) -> bytes:
    """Damage the file's bytes, or one record of the archive, whose checksum is then recomputed."""
    if rng.random() < 0.4 or not data.startswith(b"PK"):
        return mutate_bytes(rng, data)
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        chosen = next(name for name in names if name.endswith("/data.pkl"))
        if rng.random() < 0.2:
            chosen = rng.choice(names)
        for name in names:
            record = old.read(name)
            if name == chosen:
                record = _mutate_pickle(rng, record) if name.endswith(".pkl") else record
                record = mutate_bytes(rng, record) if rng.random() < 0.7 else record
            new.writestr(name, record)
    return file.getvalue()


def _mutate_pickle(rng: random.Random, data: bytes) -> bytes:
    """Replace up to three bytes by pickle opcodes."""
    mutated = bytearray(data)
    for _ in range(rng.randrange(4)):
        mutated[rng.randrange(len(mutated))] = rng.choice(OPCODES)
    return bytes(mutated)


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Damage the file's bytes, the text of the header, or entries of the header."""
    way = rng.random()
    if way < 0.4:
        return mutate_bytes(rng, data)
    size = int.from_bytes(data[:8], "little")
    text, tensors = data[8 : 8 + size], data[8 + size :]
    if way < 0.7:
        text = mutate_bytes(rng, text)
    else:
        table = json.loads(text)
        for _ in range(rng.choice((1, 2, 20))):
            _mutate_entry(rng, table[rng.choice(sorted(set(table) - {"__metadata__"}))])
        if rng.random() < 0.2:
            table["__metadata__"] = rng.choice(([], None, 3, {}, {"c2fdft": 3}, {"c2fdft": "{}"}))
        text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def _mutate_entry(rng: random.Random, entry: dict[str, object]) -> None:
    number = rng.choice((*NUMBERS, -1, 1 << 70, 0.5, "3", None))
    match rng.randrange(5):
        case 0:
            entry["dtype"] = rng.choice(DTYPES)
        case 1:
            entry["shape"] = [number] * rng.choice((0, 1, 4, 70))
        case 2:
            entry["data_offsets"] = rng.choice(([number, 8], [0, number], [number], [8, 0], number))
        case 3:
            entry.pop(rng.choice(("dtype", "shape", "data_offsets")), None)
        case _:
            entry["shape"] = number


def load(path: Path) -> object:
    """Load the weights, and build the network if the file holds all of them."""
    checkpoint = load_checkpoint(path)
    return checkpoint.network() if len(checkpoint.ema) > 50 else checkpoint


TARGETS = [
    Target("checkpoints", ".pth", seeds_of_checkpoints, load, mutate_checkpoint),
    Target("safetensors", ".safetensors", seeds_of_safetensors, load, mutate_safetensors),
]
