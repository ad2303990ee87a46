"""Trainings that take seconds: their requests, and readers of their run folders."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from c2fdft_cli.engine.train.events import Notice, StepDone, TrainEvent, TrainResult
from c2fdft_cli.engine.train.job import train
from c2fdft_cli.engine.train.options import TrainOptions
from c2fdft_cli.engine.train.setup import set_up
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
from c2fdft_cli.progress import Job

MINI = (
    "network.dim=8",
    "network.blocks=[1,1,1,1]",
    "coarse.patches=[16,24]",
    "coarse.batches=[4,2]",
    "coarse.switch_every=3",
    "coarse.cycles=2",
    "coarse.iterations=12",
    "coarse.periods=[{length: 12, floor: 1.0e-5}]",
    "fine.patches=[16,24]",
    "fine.batches=[4,2]",
    "fine.switch_every=3",
    "fine.cycles=2",
    "fine.iterations=8",
    "fine.periods=[{length: 8, floor: 0.0}]",
    "fine.ssim=paper",
    "sampling.grid=[999,500]",
    "train.log_every=2",
    "train.save_every=6",
    "train.validate_every=6",
    "train.validation_images=2",
    "train.micro_batch=4",
)
"""Overrides for a training that takes seconds: 12 coarse steps, 8 fine ones."""

OFTEN = "train.validate_every=4"
"""Override for a run that is also scored, and therefore saved, between two of `MINI`'s saves."""


def request(
    stage: str, data: Path | None, out: Path | None, *more: str, **changes: Any
) -> TrainOptions:
    """Request a short training in float32 on the CPU; `more` are overrides on top of `MINI`."""
    values = {
        "stage": stage,
        "recipe": "tiny",
        "overrides": [*MINI, *more],
        "data": data,
        "out": out,
        "device": "cpu",
        "precision": "fp32",
        **changes,
    }
    return TrainOptions(**values)


def run(asked: TrainOptions) -> tuple[TrainResult, list[TrainEvent]]:
    """Train to the end and return the result and all events."""
    job = train(set_up(asked))
    events = list(job)
    return job.result, events


def resume(stage: str, out: Path, *changed: str) -> tuple[TrainResult, list[TrainEvent]]:
    """Resume the training in a run folder and train to its end."""
    return run(
        TrainOptions(stage, out=out, overrides=[*changed], resume=True, device="cpu",
                     precision="fp32")
    )  # fmt: skip


def stop_after(asked: TrainOptions, step: int) -> None:
    """Train and abandon the job after a step, as kill -9 would: only files on disk remain."""
    events = iter(train(set_up(asked)))
    for event in events:
        if isinstance(event, StepDone) and event.iteration == step:
            break
    events.close()


def collect(job: Job[TrainEvent, TrainResult], events: list[TrainEvent]) -> None:
    """Run a job that may fail, and append its events to `events` up to the failure."""
    for event in job:
        events.append(event)


def notices(events: Iterable[TrainEvent]) -> list[str]:
    """The texts of all notices among the events."""
    return [event.text for event in events if isinstance(event, Notice)]


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, an empty list if there is no such file yet."""
    if not (folder / "metrics.csv").is_file():
        return []
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def losses(folder: Path) -> list[str]:
    """The losses in metrics.csv, as text."""
    return [row["loss"] for row in metrics(folder)]


def weights_that_differ(a: Path, b: Path) -> list[str]:
    """The raw and averaged tensors that are not the same, bit for bit, in two checkpoints."""
    one, other = load_checkpoint(a), load_checkpoint(b)
    sets = {"params": (one.params, other.params), "params_ema": (one.ema, other.ema)}
    return [
        f"{key}.{name}"
        for key, (x, y) in sets.items()
        for name in x.keys() | y.keys()
        if not (name in x and name in y and torch.equal(x[name], y[name]))
    ]
