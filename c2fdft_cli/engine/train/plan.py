"""A training as planned: its options, checked and resolved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from c2fdft_cli.core.learning_rate import learning_rate
from c2fdft_cli.engine.train.folder import RunFolder
from c2fdft_cli.engine.train.state import StateToResume
from c2fdft_cli.engine.weights.checkpoint import Checkpoint
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.recipe.schema import Recipe, Stage
from c2fdft_cli.vocabulary import TrainedStage


@dataclass(frozen=True)
class TrainPlan:
    """A training, made from its options by `setup.set_up`.

    section: the recipe's section of the stage; `fine.recompute: auto` is replaced by a choice.
    recipe_name: name of the recipe, which the run is named after.
    data: folder of shards.
    precision: as requested on the command line, or "auto"; a resumed run keeps it.
    timesteps: those of the sampler, descending, for validation and the fine objective.
    init: weights to start from; None for random weights, and for a resumed run.
    started_from: digest of the weights that the run started from, "" for random ones; None for a
        resumed run whose state does not say it.
    resume: the run's own state to resume from; None for a new run.
    done: iterations that a resumed run has already done.
    max_seconds: save and stop after this time.
    files: text files to write into the run folder, by name; for a resumed run, those that change.
    notices: notices for the user about these choices.
    """

    stage: TrainedStage
    recipe: Recipe
    section: Stage
    recipe_name: str
    data: Path
    run: RunFolder
    runtime: Runtime
    timesteps: list[int]
    precision: str = "auto"
    init: Checkpoint | None = None
    started_from: str | None = ""
    resume: StateToResume | None = None
    done: int = 0
    max_seconds: float | None = None
    files: dict[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def learning_rate(self, iteration: int) -> float:
        """Return the learning rate of an iteration, from 1."""
        periods = [(period.length, period.floor) for period in self.section.periods]
        return learning_rate(iteration - 1, self.section.lr, periods)

    def remarks(self, has_lq: bool) -> Iterator[str]:
        """Yield what the user should know before the first step, or instead of it in a dry run.

        has_lq: whether the shards hold degraded images.
        """
        yield from self.runtime.notes
        yield from self.notices
        synthetic, periods = self.recipe.data.synthesize, self.section.periods
        if synthetic is not None and has_lq:
            yield (
                f"training on synthetic {synthetic}: the shards' own degraded images are not used "
                "(data.synthesize=null uses them)"
            )
        end, iterations = sum(period.length for period in periods), self.section.iterations
        if end < iterations and periods[-1].floor == 0:
            yield (
                f"the learning rate is 0 after iteration {end} of {iterations}, where "
                f"{self.stage}.periods end at a floor of 0: make them longer or the floor higher"
            )
