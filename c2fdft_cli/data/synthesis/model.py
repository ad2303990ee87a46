"""What every degradation provides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.data.synthesis.streaks import StreakBank
from c2fdft_cli.validation import STRICT
from c2fdft_cli.vocabulary import Task

Unclipped: TypeAlias = NDArray[np.int16]
"""A picture whose values may be outside of 0..255, int16 [h, w, 3]."""


class Model(ABC):
    """A degradation; subclasses are frozen dataclasses, whose attributes are its options.

    Attributes:
        task: the task that its pairs are for.
        uses_streaks: whether it can use rendered streak masks.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    task: ClassVar[Task]
    uses_streaks: ClassVar[bool] = False

    @property
    def margin(self) -> int:
        """How far, in px, a pixel can be smeared: the context that a crop needs on each side."""
        return 0

    @property
    def may_be_unclipped(self) -> bool:
        """Whether the values of some training patches are not clipped to 0..255."""
        return False

    def options_in_use(self, *, bank: bool) -> frozenset[str]:
        """Return the names of the options that can change a picture, given the others' values.

        Args:
            bank: rendered streak masks are given.
        """
        return frozenset(asdict(self))  # type: ignore[call-overload]  # subclasses are dataclasses

    @abstractmethod
    def degrade(
        self, gt: Pixels, rng: np.random.Generator, streaks: StreakBank | None = None
    ) -> Pixels:
        """Return a degraded copy of `gt`; the same generator state gives the same pixels.

        Args:
            gt: clean image or crop, uint8 [h, w, 3]; see `margin`.
            rng: the only source of randomness.
            streaks: rendered streak masks for rain; without them streaks are rendered by formula.

        Returns:
            uint8 [h, w, 3], C-contiguous.
        """

    def degrade_patch(
        self, gt: Pixels, rng: np.random.Generator, streaks: StreakBank | None = None
    ) -> Pixels | Unclipped:
        """Do the same with a training patch, which may stay unclipped."""
        return self.degrade(gt, rng, streaks)

    def stored_options(self) -> dict[str, Any]:
        """Return the options that decide the pixels of stored pictures, for shards to record."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]  # subclasses are dataclasses
