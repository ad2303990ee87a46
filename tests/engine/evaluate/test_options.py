"""Which arguments of `eval` can be combined, and what they select."""

from __future__ import annotations

from pathlib import Path

import pytest

from c2fdft_cli.engine.evaluate.options import EvalSource, Mode, WeightsOptions, mode_of
from c2fdft_cli.errors import UsageError


@pytest.mark.parametrize(
    ("names", "without_weights", "with_weights"),
    [
        ({"restored": "out", "target": "target"}, Mode.IMAGES, "TARGET"),
        ({"restored": "out"}, "nothing to score", Mode.IMAGES),
        ({"restored": "sidd"}, Mode.BLOCKS, Mode.BLOCKS),
        ({"restored": "sidd", "target": "target"}, Mode.BLOCKS, Mode.BLOCKS),
        ({"restored": "sidd", "sigma": 25.0}, "--sigma needs", Mode.IMAGES),
        ({"restored": "sidd", "data": "s"}, "--data needs", "--data cannot be combined with an"),
        ({"restored": "x.mat", "degraded": "out"}, "SIDD blocks", "SIDD blocks"),
        ({"pairs": "x.csv", "restored": "out"}, Mode.LIST, Mode.LIST),
        ({"pairs": "x.csv", "restored": "sidd"}, "SIDD blocks", "SIDD blocks"),
        ({"data": "sidd"}, "--data needs", Mode.BLOCKS),
        ({"data": "s"}, "--data needs", Mode.SHARDS),
        ({}, "nothing to score", Mode.SHARDS),
        ({"restored": "out", "no_reference": True}, Mode.PHOTOS, "--no-reference takes"),
        (
            {"restored": "out", "no_reference": True, "data": "s"},
            "--no-reference takes",
            "--no-reference takes",
        ),
    ],
)
def test_the_arguments_decide_what_is_scored(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: dict[str, str | float],
    without_weights: Mode | str,
    with_weights: Mode | str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("out", "sidd"):
        Path(folder).mkdir()
    for folder in ("sidd", "."):  # the current folder is scored only if it is named
        Path(folder, "ValidationGtBlocksSrgb.mat").touch()
    given = {key: Path(one) if isinstance(one, str) else one for key, one in names.items()}
    for weights, expected in ((None, without_weights), ("derain", with_weights)):
        words = {"restored": None, "target": None, **given, "weights": weights}
        if isinstance(expected, Mode):
            assert mode_of(EvalSource(**words), WeightsOptions(), None) is expected
        else:
            with pytest.raises(UsageError, match=expected):
                mode_of(EvalSource(**words), WeightsOptions(), None)
