"""What a training is made of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from c2fdft_cli.engine.train.folder import RunFolder
from c2fdft_cli.engine.train.step.memory import choose_recompute
from c2fdft_cli.engine.weights.checkpoint import Checkpoint
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.recipe.schema import Recipe, Stage


@dataclass(frozen=True)
class TrainOptions:
    """What a training is made of.

    stage: "coarse" or "fine".
    recipe_name: for the name of the run.
    data: folder of shards.
    precision: as asked for on the command line, else "auto"; a resumed run keeps it.
    grid: sampling times, for validation and the fine objective.
    init: weights to start from; None starts from random ones.
    resume: the state to resume from, the run's own; None for a new run.
    done: iterations of a run that is resumed.
    max_seconds: save and stop after this time.
    files: text files to write into the run folder, by name; of a resumed run those that change.
    notices: what the user may want to know of these choices.
    """

    stage: str
    recipe: Recipe
    recipe_name: str
    data: Path
    run: RunFolder
    runtime: Runtime
    grid: list[int]
    precision: str = "auto"
    init: Checkpoint | None = None
    resume: Path | None = None
    done: int = 0
    max_seconds: float | None = None
    files: dict[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @cached_property
    def section(self) -> Stage:
        """The recipe's section of the stage that is trained, with what it leaves to the program."""
        if self.stage == "coarse":
            return self.recipe.coarse
        fine, network = self.recipe.fine, self.recipe.network
        compiling = self.recipe.train.compile
        way = choose_recompute(network, fine, len(self.grid), compiling, self.runtime)
        return replace(fine, recompute=way)
