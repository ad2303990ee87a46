"""The options and the result of every evaluation, and the loop over its images."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from c2fdft_cli.engine.evaluate.metrics import without_mean
from c2fdft_cli.engine.evaluate.pairing import fail
from c2fdft_cli.engine.sampling.scoring import Metric, Scored, Scorer, mean_scores
from c2fdft_cli.errors import DataError, PartialFailure
from c2fdft_cli.metrics.protocols import Protocol
from c2fdft_cli.metrics.statistics import summarise
from c2fdft_cli.pipeline import in_order
from c2fdft_cli.progress import Job, Looked
from c2fdft_cli.settings import BORDER, PROTOCOL, check_settings, setting
from c2fdft_cli.words import many

Item = TypeVar("Item")
ToScore = tuple[str, Callable[[], Scored]]
"""The name of an image, and the function that scores it."""

ASKED, DEFAULT = "as requested", "the default; --protocol chooses another"


@dataclass(frozen=True)
class EvalOptions:
    """How images are scored, wherever they come from.

    Args:
        metrics: additional metrics by name.
        rank, world: number of this process, and how many processes share the images.
        pictures: whether the yielded records contain the pixels, for a report.
        looked: is told how many of how many pairs were checked before the job starts.
    """

    protocol: str | None = setting(None, PROTOCOL)
    border: int = setting(0, BORDER)
    metrics: dict[str, Metric] = field(default_factory=dict)
    rank: int = 0
    world: int = 1
    pictures: bool = False
    looked: Looked = lambda *_: None

    def __post_init__(self) -> None:
        check_settings(self)

    def chosen_by(self, default: str = DEFAULT) -> str:
        """Return why this protocol is used, for the user."""
        return default if self.protocol is None else ASKED

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return the items of this process: every `world`-th, starting with item `rank`."""
        return list(items[self.rank :: self.world])

    def scorer(self, protocol: Protocol) -> Scorer:
        """Return a scorer with these options; it also scores the inputs, if they are known."""
        return Scorer(protocol, self.border, self.metrics, inputs=True, pictures=self.pictures)


@dataclass(frozen=True)
class EvalResult:
    """The records of an evaluation and how they were computed.

    Args:
        protocol: the protocol of the scores.
        chosen_by: why this protocol is used, for the user.
        rows: one record per image, without pictures.
        scored_on: "saved files" or "network output", and the bit depth.
        border: pixels that were skipped on each side.
        without_target, without_restored: unpaired files.
        found_by: how the pairs were found.
        partners: for a row's name, the path of its degraded input if known, otherwise its target.
        notes: further notes about the scores.
        recipe: the recipe of the weights, if they have one.
        has_targets: False if there are only no-reference metrics.
        unreadable: the error of each image that could not be scored.
        with_inputs: whether degraded inputs are known for some images.
    """

    protocol: Protocol
    rows: list[Scored]
    scored_on: str
    border: int = 0
    without_target: list[Path] = field(default_factory=list)
    without_restored: list[Path] = field(default_factory=list)
    found_by: str = ""
    partners: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    recipe: dict[str, Any] | None = None
    has_targets: bool = True
    chosen_by: str = DEFAULT
    unreadable: list[str] = field(default_factory=list)
    with_inputs: bool = False

    @property
    def all_notes(self) -> list[str]:
        """The notes, including those on why the inputs or a metric have no scores or no mean."""
        notes = [*self.notes, *without_mean(self.rows)]
        bare = [row.name for row in self.rows if row.degraded is None]
        if not self.with_inputs or not bare:
            return notes
        count = f"{len(bare)} of {many(len(self.rows), 'image')}"
        what = f"{count} have no input of the same size, such as {bare[0]}"
        return [*notes, f"note: the degraded inputs are not scored: {what}"]

    @property
    def missing(self) -> int:
        """The number of images and targets without scores."""
        return len(self.without_target) + len(self.without_restored) + len(self.unreadable)

    @property
    def failure(self) -> PartialFailure | None:
        """The error that the program ends with if the set is incomplete; None if it is complete."""
        return self.failure_of(None)

    def failure_of(self, side: str | None) -> PartialFailure | None:
        """As `failure`; in a comparison `side` names the side that is incomplete."""
        if not self.missing:
            return None
        what = f"scored {len(self.rows)} of {len(self.rows) + self.missing}: the set is incomplete"
        hint = "use --allow-missing to accept means over a part of the set"
        return PartialFailure(what, where=side, hint=hint, details=self.unreadable)

    @property
    def psnr(self) -> float:
        """The mean PSNR of the images in dB."""
        return mean_scores(self.rows)["psnr"]

    @property
    def ssim(self) -> float:
        """The mean SSIM of the images."""
        return mean_scores(self.rows)["ssim"]

    @property
    def spread(self) -> float | None:
        """The standard deviation of the set's mean PSNR over several seeds.

        None for a single seed, or if an image was restored exactly (its PSNR is infinite).
        """
        seeds = list(zip(*(row.by_seed for row in self.rows), strict=True))
        return summarise(list(map(statistics.fmean, seeds))).std if seeds else None


def score_each(
    tasks: Sequence[ToScore],
    result: EvalResult,
    options: EvalOptions,
    *,
    unit: str = "image",
    ahead: bool = True,
    notes: Callable[[list[Scored]], list[str]] = lambda _: [],
) -> Job[Scored, EvalResult]:
    """Make the job that scores images in order.

    An image that cannot be scored is listed in the result. The iteration raises DataError if none
    can be scored, in a single process.

    Args:
        tasks: the name of each image, also of other processes, and the function that scores it.
        result: what is known before; the job adds the records of this process, the errors and the
            notes.
        options: says which of the images this process scores.
        unit: what an image is called.
        ahead: whether two threads work ahead.
        notes: returns notes at the end, from the records.
    """
    mine = options.share(tasks)

    def work() -> Generator[Scored, None, EvalResult]:
        rows: list[Scored] = []
        problems: list[str] = []
        for outcome in in_order(_outcome, mine, workers=2) if ahead else map(_outcome, mine):
            if isinstance(outcome, str):
                problems.append(outcome)
            else:
                rows.append(replace(outcome, pictures=None))
                yield outcome
        if not rows and options.world == 1:
            fail(problems, len(problems), unit)
        return replace(result, rows=rows, unreadable=problems, notes=notes(rows))

    return Job(work(), total=len(mine), title="eval", unit=unit)


def _outcome(task: ToScore) -> Scored | str:
    """Score an image; if that is not possible, return why."""
    name, score = task
    try:
        return score()
    except DataError as error:
        return str(error) if error.where else f"{name}: {error}"
