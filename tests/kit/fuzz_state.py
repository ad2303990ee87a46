"""Fuzz target: training states, with valid and invalid checksums."""

from __future__ import annotations

from pathlib import Path

import torch

from c2fdft_cli.engine.train.state import STATE_VERSION, load_state
from c2fdft_cli.engine.weights.checkpoint import Meta
from c2fdft_cli.engine.weights.tensors import save_tensors
from tests.kit.fuzz import Target
from tests.kit.fuzz_weights import SMALL, mutate_checkpoint


def seeds_of_states(folder: Path) -> list[bytes]:
    """One state before the first validation and one after it."""
    path, seeds = folder / "state.pt", []
    for best in (None, 31.5):
        moments = {"step": torch.tensor(3.0), "exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)}
        stepper = {"net": {"w": torch.ones(4)}, "optimizer": {"state": {0: moments}}}
        values = {"state_version": STATE_VERSION, "step": 7, "stepper": stepper, "micro": {16: 4},
                  "micro_batch": "auto", "machine": ["cpu", 1], "precision": "fp32",
                  "computed_in": "fp32", "window": {"loss": [0.5]}, "unscored": best is None,
                  "best_psnr": best, "fingerprint": "a" * 64,
                  "meta": Meta(SMALL, stage="coarse", step=7).to_json()}  # fmt: skip
        save_tensors(path, values)
        seeds.append(path.read_bytes())
        path.unlink()
    return seeds


TARGETS = [Target("states", ".pt", seeds_of_states, load_state, mutate_checkpoint)]
