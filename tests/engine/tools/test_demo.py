"""The photos of the demo and their rain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c2fdft_cli.data.images.picture import read_rgb8
from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.engine.tools import demo
from tests.kit.files import names

pytest.importorskip("skimage")


class Errors:
    """In place of rain: errors of the strengths of a list, of which one is usual."""

    def __init__(self) -> None:
        self.levels = [25, 14, 17, 16]  # PSNR-Y: 24.1, 29.2, 27.5 and 28.0 dB
        self.drawn: list[float] = []

    def degrade(self, gt: Pixels, rng: np.random.Generator) -> Pixels:
        self.drawn.append(rng.random())
        sign = 1 - 2 * (gt > 127).astype(np.int16)
        return (gt + sign * self.levels.pop(0)).astype(np.uint8)


def test_the_rain_is_drawn_again_until_it_is_of_the_usual_strength(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "TRAIN", ("chelsea.png",))
    monkeypatch.setattr(demo, "HELD_OUT", ())
    drawn = []
    for folder in ("a", "b"):
        errors = Errors()
        monkeypatch.setattr(demo, "parse_model", lambda *_, errors=errors: errors)
        demo.make_pairs(tmp_path / folder)
        drawn.append(errors.drawn)
        pair = [tmp_path / folder / "train" / kind for kind in ("rainy", "clean")]
        assert [names(one) for one in pair] == [["chelsea.png"]] * 2
        rainy, clean = (read_rgb8(one / "chelsea.png").astype(int) for one in pair)
        assert (abs(rainy - clean) == 17).all()
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3
