"""Writing a run's checkpoints and state.pt, the only file that a training resumes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.train.folder import link
from c2fdft_cli.engine.train.plan import TrainPlan
from c2fdft_cli.engine.train.state import STATE_VERSION
from c2fdft_cli.engine.train.step.stepper import Stepper
from c2fdft_cli.engine.weights.checkpoint import (
    Meta,
    StateDict,
    load_checkpoint,
    plain,
    same_tensors,
    save_checkpoint,
)
from c2fdft_cli.engine.weights.identify import UnreadableError
from c2fdft_cli.engine.weights.tensors import save_tensors
from c2fdft_cli.errors import CheckpointError
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.files.reading import is_file


class RunImages(NamedTuple):
    """Digests of the images that a run depends on: training and validation shards, streak masks.

    They are "" if there are none, that of validation also in all processes but the main one.
    """

    train: str
    validation: str
    streaks: str


class RunState:
    """Writes a run's state and checkpoints; the rename of state.pt is the commit."""

    def __init__(self, plan: TrainPlan, images: RunImages, stepper: Stepper) -> None:
        self._plan = plan
        self.images = images
        self._stepper = stepper
        self.best_psnr: float | None = None
        self.metrics: dict[str, Any] = {}

    @property
    def ema(self) -> DFT:
        """The network with the averaged (EMA) weights."""
        return self._stepper.ema

    def save(
        self, step: int, micro: dict[int, int], window: dict[str, Any], unscored: bool
    ) -> None:
        """Write the numbered checkpoint, then state.pt, then remove old checkpoints.

        Args:
            step: number of finished iterations; for 0 no numbered checkpoint is written.
            micro: micro-batch by patch size.
            window: sums since the last row of metrics.csv.
            unscored: whether the validation of this step is still due.
        """
        run = self._plan.run
        if step:
            numbered = run.checkpoint_of(step)
            self._save_weights(numbered, self.meta(step))
            link(numbered, run.checkpoints / "last.pt")
        # No random state is needed: batches, noise and times are functions of seed and iteration.
        state = {
            "state_version": STATE_VERSION,
            "step": step,
            "stepper": self._stepper.state(),
            "micro": micro,
            "micro_batch": self._plan.recipe.train.micro_batch,
            "machine": machine(self._plan.runtime),
            # The requested precision, and the one used on this machine. A run that resumes on
            # another machine in another precision keeps the request, and uses it again when it
            # is back.
            "precision": self._plan.precision,
            "computed_in": self._plan.runtime.precision,
            "window": window,
            "unscored": unscored,
            "best_psnr": self.best_psnr,
            "fingerprint": self.images.train,
            "scored_on": self.images.validation,
            "streaks": self.images.streaks,
            "started_from": self._plan.started_from,
            "meta": self.meta(step).to_json(),
        }
        # After the checkpoints, because the rename of the state is the commit. If the run is
        # killed in between, the resumed run writes the newer checkpoint again.
        run.keep_state()
        save_tensors(run.state, state)
        # last, so that a save that fails (for example on a full disk) removes nothing
        run.keep_latest(self._plan.recipe.train.keep, step)

    def save_best(self, step: int) -> None:
        """Write best.pt."""
        self._save_weights(self._plan.run.checkpoints / "best.pt", self.meta(step))

    def save_final(self, path: Path, step: int) -> None:
        """Write the stage's final checkpoint; keep timesteps that a sweep has stored in it."""
        meta = self.meta(step)
        swept = _swept(path, self._stepper.ema.state_dict())
        if swept is not None:
            meta.grid, meta.grid_from = swept.grid, swept.grid_from
            meta.metrics = {**meta.metrics, "sweep": swept.metrics.get("sweep")}
        self._save_weights(path, meta)

    def _save_weights(self, path: Path, meta: Meta) -> None:
        stepper = self._stepper
        save_checkpoint(path, stepper.net.state_dict(), stepper.ema.state_dict(), meta)

    def meta(self, step: int) -> Meta:
        """Return the metadata of a checkpoint of this step."""
        plan = self._plan
        return Meta(
            network=plan.recipe.network,
            diffusion=plan.recipe.diffusion,
            stage=plan.stage,
            step=step,
            grid=plan.timesteps,
            grid_from="training" if plan.stage == "fine" else "recipe",
            recipe=plan.recipe.to_dict(),
            recipe_name=plan.recipe_name,
            data=str(plan.data),
            data_train=self.images.train,
            data_val=self.images.validation or None,
            metrics=dict(self.metrics),
        )


def _swept(path: Path, ema: StateDict) -> Meta | None:
    """Return the metadata of `path` if it has these weights and a sweep's timesteps, or None."""
    # Needed because a finished run writes its final checkpoint again whenever it is resumed.
    if not is_file(path):
        return None
    try:
        found = load_checkpoint(path)
    except UnreadableError:  # it may be intact, and its timesteps would be lost
        raise
    except CheckpointError:  # damaged: it is simply replaced
        return None
    swept = found.meta.grid_from == "sweep" and same_tensors(found.ema, plain(ema))
    return found.meta if swept else None


def machine(runtime: Runtime) -> list[object]:
    """Return what the size of micro-batches depends on: device type and number of processes."""
    return [runtime.device.type, runtime.world]
