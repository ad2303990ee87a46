"""state.pt, the one file that a training resumes from, and the checkpoints beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.train.folder import RunFolder
from c2fdft_cli.engine.train.options import TrainOptions
from c2fdft_cli.engine.train.step.stepper import Stepper
from c2fdft_cli.engine.weights.checkpoint import (
    Meta,
    StateDict,
    load_checkpoint,
    plain,
    read_meta,
    same_tensors,
    save_checkpoint,
)
from c2fdft_cli.engine.weights.stored import refuse_missing
from c2fdft_cli.engine.weights.tensors import load_tensors, save_tensors
from c2fdft_cli.errors import CheckpointError
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.recipe.schema import Count
from c2fdft_cli.validation import NotBool, validate

STATE_VERSION = 1


@dataclass(frozen=True)
class LoadedState:
    """What state.pt holds; what has a default came after the first version, whose states load."""

    step: Annotated[int, Field(ge=0), NotBool]
    stepper: dict[str, Any]
    micro: dict[Count, Count]
    window: dict[str, Any]
    best_psnr: float | None
    fingerprint: str
    meta: Meta
    micro_batch: int | str = "auto"
    machine: list[object] = field(default_factory=list)
    precision: str = "auto"
    computed_in: str | None = None
    unscored: bool = False


class RunState:
    """Writes a run's state and checkpoints; the rename of state.pt is the commit.

    Args:
        options: of the training.
        fingerprint: of the training shards.
        stepper: whose state is saved.
    """

    def __init__(self, options: TrainOptions, fingerprint: str, stepper: Stepper) -> None:
        self._options = options
        self._fingerprint = fingerprint
        self._stepper = stepper
        self.best_psnr: float | None = None
        self.metrics: dict[str, Any] = {}

    @property
    def ema(self) -> DFT:
        """The averaged weights."""
        return self._stepper.ema

    def save(
        self, step: int, micro: dict[int, int], window: dict[str, Any], unscored: bool
    ) -> None:
        """Write the numbered checkpoint, then state.pt, then drop what is too old.

        Args:
            step: finished iterations; 0 leaves no numbered checkpoint.
            micro: micro-batch by patch size.
            window: what has come together since the last row of metrics.csv.
            unscored: this step's validation is due and not done.
        """
        run = self._options.run
        if step:
            numbered = run.numbered(step)
            self._save_weights(numbered, self.meta(step))
            run.link(numbered, "last.pt")
        # No random state is among it: batches, noise and times are functions of seed and iteration.
        state = {
            "state_version": STATE_VERSION,
            "step": step,
            "stepper": self._stepper.state(),
            "micro": micro,
            "micro_batch": self._options.recipe.train.micro_batch,
            "machine": machine(self._options.runtime),
            # What was asked for, and what that came to on this machine: a run that goes on
            # elsewhere in another precision takes the first again when it is back.
            "precision": self._options.precision,
            "computed_in": self._options.runtime.precision,
            "window": window,
            "unscored": unscored,
            "best_psnr": self.best_psnr,
            "fingerprint": self._fingerprint,
            "meta": self.meta(step).to_json(),
        }
        # After the checkpoints, since the rename of the state is the commit. What a kill leaves
        # ahead of the state is written again when the resumed run gets there.
        run.keep_state()
        save_tensors(run.state, state)
        # last: a save that fails, on a full disk say, has taken nothing away
        run.keep_latest(self._options.recipe.train.keep, step)

    def save_best(self, step: int) -> None:
        """Write best.pt."""
        self._save_weights(self._options.run.checkpoints / "best.pt", self.meta(step))

    def save_final(self, path: Path, step: int) -> None:
        """Write the finished stage's checkpoint; timesteps that a sweep chose for it stay."""
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
        """What the checkpoints say of themselves."""
        options = self._options
        return Meta(
            network=options.recipe.network,
            diffusion=options.recipe.diffusion,
            stage=options.stage,
            step=step,
            grid=options.grid,
            grid_from="training" if options.stage == "fine" else "recipe",
            recipe=options.recipe.to_dict(),
            recipe_name=options.recipe_name,
            data=str(options.data),
            metrics=dict(self.metrics),
        )


def _swept(path: Path, ema: StateDict) -> Meta | None:
    """The metadata of a checkpoint of these weights in which a sweep has stored timesteps."""
    # a run that is finished writes its checkpoint again whenever it is resumed
    if not path.is_file():
        return None
    try:
        found = load_checkpoint(path)
    except CheckpointError:  # damaged: it is written anew
        return None
    swept = found.meta.grid_from == "sweep" and same_tensors(found.ema, plain(ema))
    return found.meta if swept else None


def machine(runtime: Runtime) -> list[object]:
    """What a micro-batch that fits depends on: kind of device and number of processes."""
    return [runtime.device.type, runtime.world]


class DamagedStateError(CheckpointError):
    """A state whose bytes are not those that were written."""


def load_newest(run: RunFolder) -> tuple[Path, LoadedState, tuple[str, ...]]:
    """The state of a run, or the one before it where the newest is damaged.

    Returns:
        The file, its content, and what the user should know.

    Raises:
        CheckpointError: neither can be used.
    """
    try:
        return run.state, load_state(run.state), ()
    except DamagedStateError as error:
        if not run.previous_state.is_file():
            raise
        state = load_state(run.previous_state)
        notice = f"{error}: resuming from the state before it, of step {state.step}"
        return run.previous_state, state, (notice,)


def load_state(path: Path) -> LoadedState:
    """Read a state; CheckpointError if it cannot be used, DamagedStateError if it is damaged."""
    refuse_missing(path)
    try:
        content = load_tensors(path)
    except CheckpointError as error:
        hint = f"start a new run from its newest weights: --init {path.parent}/checkpoints/last.pt"
        what = f"the training state is damaged ({error.what})"
        raise DamagedStateError(what, where=path, hint=hint) from error
    if content.get("state_version") != STATE_VERSION:
        raise CheckpointError(
            "not a training state of this program", where=path, hint="give checkpoints to --init"
        )
    try:
        meta = read_meta(content.get("meta"), path)
        return validate(LoadedState, {**content, "meta": meta})
    except ValueError as error:
        raise CheckpointError(f"a damaged training state: {error}", where=path) from error
