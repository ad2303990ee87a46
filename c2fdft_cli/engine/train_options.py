"""What a training is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from c2fdft_cli.engine.checkpoint import Checkpoint
from c2fdft_cli.engine.run_folder import RunFolder
from c2fdft_cli.engine.runtime import Runtime
from c2fdft_cli.recipe import Recipe


@dataclass(frozen=True)
class TrainOptions:
    """What a training is made of.

    stage: "coarse" or "fine".
    recipe_name: for the name of the run.
    data: folder of shards.
    grid: sampling times, for validation and the fine objective.
    init: weights to start from; None starts from random ones.
    resume: go on from the run's state.pt; recipe, data and grid are then the run's own.
    max_seconds: save and stop after this time.
    files: further text files for the run folder, by name.
    """

    stage: str
    recipe: Recipe
    recipe_name: str
    data: Path
    run: RunFolder
    runtime: Runtime
    grid: list[int]
    init: Checkpoint | None = None
    resume: bool = False
    max_seconds: float | None = None
    files: dict[str, str] = field(default_factory=dict)
