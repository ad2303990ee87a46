"""Reading state.pt, the only file that a training resumes from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from c2fdft_cli.engine.train.folder import RunFolder
from c2fdft_cli.engine.weights.checkpoint import IF_LATER, Meta, read_meta
from c2fdft_cli.engine.weights.identify import UnreadableError
from c2fdft_cli.engine.weights.stored import refuse_missing
from c2fdft_cli.engine.weights.tensors import load_tensors
from c2fdft_cli.errors import CheckpointError
from c2fdft_cli.files.reading import is_file
from c2fdft_cli.recipe.schema import Count
from c2fdft_cli.validation import NotBool, validate

STATE_VERSION = 1


def _is_comparable(score: float) -> float:
    if math.isnan(score):  # no later score would be better
        raise ValueError("must not be NaN")
    return score


@dataclass(frozen=True)
class LoadedState:
    """The content of state.pt; states of older versions may lack the fields with a default.

    fingerprint, scored_on, streaks: the digests in `RunImages`; None if they are not known.
    started_from: as in `TrainPlan`.
    """

    step: Annotated[int, Field(ge=0), NotBool]
    stepper: dict[str, Any]
    micro: dict[Count, Count]
    window: dict[str, Any]
    best_psnr: Annotated[float, AfterValidator(_is_comparable)] | None
    fingerprint: str
    meta: Meta
    micro_batch: int | str = "auto"
    machine: list[object] = field(default_factory=list)
    precision: str = "auto"
    computed_in: str | None = None
    unscored: bool = False
    scored_on: str | None = None
    streaks: str | None = None
    started_from: str | None = None


@dataclass
class StateToResume:
    """The state that a run resumes from; it is read once, and its content is handed over once.

    path: the file.
    stamp: `RunFolder.state_stamp` from before the file was read.
    """

    path: Path
    stamp: tuple[int, int] | None
    content: LoadedState | None

    def take(self) -> LoadedState:
        """Return the content and keep it no longer: it holds four numbers for each weight.

        A later call reads the file again, and raises what `load_state` raises.
        """
        content, self.content = self.content, None
        return load_state(self.path) if content is None else content


class DamagedStateError(CheckpointError):
    """The bytes of a state are not those that were written."""


def load_newest(run: RunFolder) -> tuple[Path, LoadedState, tuple[str, ...]]:
    """Load the state of a run, or its previous state if the newest is missing or damaged.

    If the newest cannot be read for another reason, that is an error: the steps since the previous
    one are not given up for a missing permission or a lack of memory.

    Returns:
        The file, its content, and notices for the user.

    Raises:
        CheckpointError: neither state can be used.
        UnreadableError, DataError: the system does not read the newest.
        ResourceError: out of memory.
    """
    has_previous = is_file(run.previous_state)
    try:
        if is_file(run.state) or not has_previous:
            return run.state, load_state(run.state), ()
        problem = f"{run.state} is missing"
    except DamagedStateError as error:
        if not has_previous:
            raise
        problem = str(error)
    state = load_state(run.previous_state)
    notice = f"{problem}: resuming from the previous state, of step {state.step}"
    return run.previous_state, state, (notice,)


def load_state(path: Path) -> LoadedState:
    """Read a state.

    Raises:
        DamagedStateError: its bytes are not those that were written.
        CheckpointError: it is missing, or its content cannot be used.
        UnreadableError: the system does not read it.
        ResourceError: out of memory.
    """
    refuse_missing(path)
    try:
        content = load_tensors(path)
    except UnreadableError:
        raise
    except CheckpointError as error:
        hint = f"start a new run from its newest weights: --init {path.parent}/checkpoints/last.pt"
        what = f"the training state is damaged ({error.what})"
        raise DamagedStateError(what, where=path, hint=hint) from error
    version = content.get("state_version")
    if isinstance(version, int) and version > STATE_VERSION:
        what = f"the training state has version {version}, this program reads {STATE_VERSION}"
        raise CheckpointError(what, where=path, hint="upgrade c2fdft")
    if version != STATE_VERSION:
        raise CheckpointError(
            "not a training state of this program", where=path, hint="give checkpoints to --init"
        )
    try:
        meta = read_meta(content.get("meta"), path)
        return validate(LoadedState, {**content, "meta": meta})
    except ValueError as error:
        raise CheckpointError(
            f"a damaged training state: {error}", where=path, hint=IF_LATER
        ) from error
