"""What every evaluation takes and gives, and the loop over what it scores."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from c2fdft_cli.engine.evaluate.pairing import LISTED
from c2fdft_cli.engine.sampling.scoring import Metric, Scored, Scorer
from c2fdft_cli.errors import DataError, PartialFailure
from c2fdft_cli.metrics.protocols import Protocol
from c2fdft_cli.metrics.statistics import summarise
from c2fdft_cli.pipeline import in_order
from c2fdft_cli.settings import BORDER, PROTOCOL, check_settings, setting
from c2fdft_cli.vocabulary import many

Item = TypeVar("Item")

ASKED, DEFAULT = "asked for", "the default; --protocol chooses another"


@dataclass(frozen=True)
class EvalOptions:
    """How images are scored, whatever they come from.

    Args:
        metrics: further metrics by name.
        rank, world: this process among those that share the images.
        pictures: keep the pixels of each record until it has been handed out, for a report.
    """

    protocol: str | None = setting(None, PROTOCOL)
    border: int = setting(0, BORDER)
    metrics: dict[str, Metric] = field(default_factory=dict)
    rank: int = 0
    world: int = 1
    pictures: bool = False

    def __post_init__(self) -> None:
        check_settings(self)

    def chosen_by(self, default: str = DEFAULT) -> str:
        """Why the protocol is what it is, for people."""
        return default if self.protocol is None else ASKED

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's share: every `world`-th, from `rank` on."""
        return list(items[self.rank :: self.world])

    def scorer(self, protocol: Protocol) -> Scorer:
        """What scores an image by these options; the inputs too, where they are known."""
        return Scorer(protocol, self.border, self.metrics, inputs=True, pictures=self.pictures)


@dataclass(frozen=True)
class EvalResult:
    """The records of an evaluation and what they are made of.

    Args:
        protocol: of the scores.
        chosen_by: why this protocol, for people.
        rows: one an image, without pictures.
        scored_on: "saved files" or "network output", and in which depth.
        border: pixels that were skipped on each side.
        without_target, without_restored: files that nothing belongs to.
        found_by: how the pairs were found.
        partners: of a row's name, the degraded input or else the target that it belongs to.
        notes: what else to say of the numbers.
        recipe: of the weights, when they carry one.
        has_targets: False where nothing but no-reference metrics are known.
        unreadable: what is wrong with each image that has no scores.
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
        """The notes, and why the inputs have no scores."""
        bare = [row.name for row in self.rows if row.degraded is None]
        if not self.with_inputs or not bare:
            return self.notes
        count = f"{len(bare)} of {many(len(self.rows), 'image')}"
        what = f"the degraded inputs are not scored: {count} have none of their size, as {bare[0]}"
        return [*self.notes, f"note: {what}"]

    @property
    def missing(self) -> int:
        """How many images or targets have no scores."""
        return len(self.without_target) + len(self.without_restored) + len(self.unreadable)

    @property
    def failure(self) -> PartialFailure | None:
        """What an evaluation of an incomplete set ends with."""
        if not self.missing:
            return None
        what = f"scored {len(self.rows)} of {len(self.rows) + self.missing}: the set is incomplete"
        hint = "use --allow-missing for a mean over a part of the set"
        return PartialFailure(what, hint=hint, details=self.unreadable[:LISTED])

    @property
    def psnr(self) -> float:
        """The mean over the images, dB."""
        return statistics.fmean(row.psnr for row in self.rows)

    @property
    def ssim(self) -> float:
        """The mean over the images."""
        return statistics.fmean(row.ssim for row in self.rows)

    @property
    def spread(self) -> float | None:
        """With several seeds, the standard deviation over them of the set's mean PSNR.

        None for one seed, or where an image was restored exactly.
        """
        seeds = list(zip(*(row.by_seed for row in self.rows), strict=True))
        return summarise(list(map(statistics.fmean, seeds))).std if seeds else None


def collect(scored: Iterable[Scored]) -> Generator[Scored, None, list[Scored]]:
    """Hand the records out, pictures and all, and return them without the pictures."""
    rows = []
    for one in scored:
        rows.append(replace(one, pictures=None))
        yield one
    return rows


def score_each(
    tasks: Sequence[tuple[str, Callable[[], Scored]]],
) -> Generator[Scored, None, tuple[list[Scored], list[str]]]:
    """Score (name, work) in order, read ahead; returns the records and what cannot be scored."""
    problems: list[str] = []

    def one(task: tuple[str, Callable[[], Scored]]) -> Scored | str:
        name, score = task
        try:
            return score()
        except DataError as error:
            return str(error) if error.where else f"{name}: {error}"

    def scored() -> Generator[Scored, None, None]:
        for outcome in in_order(one, tasks, workers=2):
            if isinstance(outcome, str):
                problems.append(outcome)
            else:
                yield outcome

    rows = yield from collect(scored())
    return rows, problems
