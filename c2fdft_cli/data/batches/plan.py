"""The patch cycle and reproducible random training patches: docs/paper.md, "Schedule".

All random choices for sample i of the *global* batch at iteration k are a function of (seed, k, i).
So a slice of the batch does not depend on the number of ranks, workers or micro-batches, and a
resumed run samples what an uninterrupted one would have sampled.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# The purpose of a Philox stream is the last word of its counter, so that streams never overlap.
_ROWS, _MIXUP, _EPOCH, _SAMPLE = 1, 2, 3, 4
_WIDTH = 4  # uniforms per sample: top, left, symmetry, time

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PatchCycle:
    """Patch sizes p0 -> p1 -> ... -> p0 ..., switching every N iterations, and batch sizes.

    The schema of recipes (`Stage`) ensures that there are as many batches as patches, and no 0.

    Args:
        patches: sides of the square patches, in pixels, in the order of the cycle.
        batches: the size of the global batch for each of them.
        switch_every: iterations until the next one.
        cycles: number of rounds through all; after them the last one stays to the end.
    """

    patches: tuple[int, ...]
    batches: tuple[int, ...]
    switch_every: int
    cycles: int

    def size_at(self, k: int) -> tuple[int, int]:
        """Return (patch side, global batch size) of iteration k, counted from 1."""
        last = self.cycles * len(self.patches) - 1
        number = min((k - 1) // self.switch_every, last) % len(self.patches)
        return self.patches[number], self.batches[number]

    def iterations_before(self, k: int) -> list[int]:
        """Count the iterations of each size among 1 .. k-1, in closed form."""
        period = self.switch_every * len(self.patches)
        cycled = min(k - 1, period * self.cycles)
        rounds, rest = divmod(cycled, period)
        counts = [rounds * self.switch_every] * len(self.patches)
        for number in range(len(counts)):
            into = rest - number * self.switch_every
            counts[number] += min(max(into, 0), self.switch_every)
        counts[-1] += k - 1 - cycled
        return counts

    def samples_before(self, k: int) -> int:
        """Return the number of global samples in iterations 1 .. k-1."""
        return sum(map(operator.mul, self.batches, self.iterations_before(k)))


@dataclass(frozen=True)
class Draw:
    """The sources of the n samples of a global batch.

    Args:
        image: [n] image numbers.
        top, left: [n] corner of the crop in the image (0 if the image is smaller than the crop).
        symmetry: [n] 0..7, bit 0 flips columns, bit 1 flips rows, bit 2 transposes first.
    """

    image: Ints
    top: Ints
    left: Ints
    symmetry: Ints


@dataclass(frozen=True)
class Mix:
    """The mixup of one iteration: `lam * sample i + (1 - lam) * sample partner[i]`.

    Args:
        partner: [global batch] a permutation of the rows.
        lam: weight of the sample itself, in (0, 1).
    """

    partner: Ints
    lam: float


class PatchPlan:
    """Which patches iteration k trains on, as a pure function of (seed, k, i).

    Args:
        sizes: (height, width) of each image or pair, at least one.
        cycle: the patch cycle.
        seed: 0 .. 2**63 - 1.
        mixup_beta: b of Beta(b, b), or None for no mixup.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        cycle: PatchCycle,
        seed: int,
        mixup_beta: float | None = None,
    ) -> None:
        self.cycle = cycle
        self.seed = seed
        self.mixup_beta = mixup_beta
        self._sizes = np.array(sizes, np.int64)

    def draw(self, k: int) -> Draw:
        """Sample image, crop and symmetry for the global batch of iteration k, counted from 1."""
        patch, batch = self.cycle.size_at(k)
        uniforms = _stream(self.seed, k, _ROWS).random((batch, _WIDTH))
        image = self._images(self.cycle.samples_before(k) + np.arange(batch))
        room = np.maximum(self._sizes[image] - patch, 0) + 1
        corner = (uniforms[:, :2] * room).astype(np.int64)
        return Draw(
            image=image,
            top=corner[:, 0],
            left=corner[:, 1],
            symmetry=(uniforms[:, 2] * 8).astype(np.int64),
        )

    def times(self, k: int, total: int) -> Ints:
        """Sample antithetic diffusion times for the batch of iteration k: docs/paper.md, eq. (10).

        These are n//2 + 1 uniform integers t in 0 .. total-1, then total-1-t of each; the first n
        are kept.
        """
        _, batch = self.cycle.size_at(k)
        uniforms = _stream(self.seed, k, _ROWS).random((batch, _WIDTH))[: batch // 2 + 1, 3]
        t = (uniforms * total).astype(np.int64)
        return np.concatenate([t, total - 1 - t])[:batch]

    def mix(self, k: int) -> Mix | None:
        """Sample the mixup of iteration k: docs/paper.md, "Schedule".

        None with probability 1/2, or if mixup is off.
        """
        if self.mixup_beta is None:
            return None
        stream = _stream(self.seed, k, _MIXUP)
        if stream.random() >= 0.5:
            return None
        _, batch = self.cycle.size_at(k)
        partner = np.argsort(stream.random(batch), kind="stable")
        return Mix(partner=partner, lam=float(stream.beta(self.mixup_beta, self.mixup_beta)))

    def generator(self, k: int, i: int) -> np.random.Generator:
        """Return the generator for the degradation of sample i."""
        return _stream(self.seed, k, _SAMPLE, i)

    def noise_seed(self, k: int, i: int) -> int:
        """Return the seed of sample i's noise, below 2**63."""
        text = f"noise {self.seed} {k} {i}".encode("ascii")
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

    def _images(self, samples: Ints) -> Ints:
        """Return the image of each global sample g; epoch g // n is a permutation of all images."""
        count = len(self._sizes)
        epochs, places = np.divmod(samples, count)
        image = np.empty_like(samples)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            image[here] = _permutation(self.seed, int(epoch), count)[places[here]]
        return image


def _stream(seed: int, key: int, purpose: int, row: int = 0) -> np.random.Generator:
    """Make a counter-based generator: equal arguments give equal numbers on any machine."""
    # Philox increments its counter from the first word as numbers are generated. Streams with the
    # same key differ in the last two words, which the count never reaches.
    words = np.array([0, 0, row, purpose], np.uint64)
    bits = np.random.Philox(key=np.array([seed, key], np.uint64), counter=words)
    return np.random.Generator(bits)


@lru_cache(maxsize=16)
def _permutation(seed: int, epoch: int, n: int) -> Ints:
    """Return the order of the images in one epoch."""
    # argsort, because a later NumPy may change what `permutation` returns
    return np.argsort(_stream(seed, epoch, _EPOCH).random(n), kind="stable")
