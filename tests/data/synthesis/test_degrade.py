"""Dispatch and options of `c2fdft_cli.data.synthesis.degrade`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest

from c2fdft_cli.data.synthesis import degrade
from c2fdft_cli.data.synthesis.blur import BlurModel
from c2fdft_cli.data.synthesis.degrade import (
    Degradation,
    parse_model,
    without_effect,
)
from c2fdft_cli.data.synthesis.noise import NoiseModel
from c2fdft_cli.data.synthesis.rain import RainModel
from c2fdft_cli.errors import UsageError

MODELS = {
    "rain": RainModel(),
    "heavy": RainModel(heavy=1.0),
    "veiled": RainModel(heavy=1.0, layers=(2, 4), veil_share=1.0),
    "photographed": RainModel(camera_share=1.0),
    "gaussian": NoiseModel(),
    "camera": NoiseModel(kind="camera"),
    "raw": NoiseModel(kind="raw"),
    "blur": BlurModel(),
    "exposure": BlurModel(kind="exposure", objects=1.0, defocus_share=1.0, jpeg_share=1.0),
    "burst": BlurModel(kind="exposure", burst=1.0),
}


MOMENTS = {
    "rain": (3.288, 47.40),
    "heavy": (44.78, 814.8),
    "veiled": (33.47, 726.6),
    "photographed": (6.954, 134.1),
    "gaussian": (8.561, 199.5),
    "camera": (1.366, 30.62),
    "raw": (2.720, 79.53),
    "blur": (2.743, 92.29),
    "exposure": (7.896, 198.8),
    "burst": (7.102, 175.0),
}
"""For seed 11 on a ramp: the mean absolute change, and the mean of the change times the column."""


def ramp(h: int, w: int) -> np.ndarray:
    y, x, c = np.mgrid[:h, :w, :3]
    return ((3 * y + 2 * x + 40 * c) % 256).astype(np.uint8)


def test_the_tables_have_every_model():
    every = set(degrade.MODELS.values())
    for table in (MODELS.values(), WITH_OTHER_OPTIONS):
        assert {type(model) for model in table} == every


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (33, 64)])
def test_images_of_any_size_keep_shape_and_type_and_gt_is_not_modified(name, size):
    gt = ramp(*size)
    before = gt.copy()
    lq = MODELS[name].degrade(gt, np.random.default_rng(1))
    assert lq.shape == gt.shape
    assert lq.dtype == np.uint8
    assert lq.flags.c_contiguous
    assert not np.shares_memory(lq, gt)
    np.testing.assert_array_equal(gt, before)


@pytest.mark.parametrize("name", MODELS)
def test_pixels_depend_only_on_the_state_of_the_generator(name):
    gt = ramp(48, 56)
    first, again, other = (
        MODELS[name].degrade(gt, np.random.default_rng((7, step, 3))) for step in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_keeps_its_degradation(name):
    """A run that is resumed, even by a later version, must continue with the same pictures."""
    gt = ramp(40, 48)
    change = np.abs(MODELS[name].degrade(gt, np.random.default_rng(11)).astype(int) - gt)
    moments = change.mean(), (change * np.arange(48)[:, None]).mean()
    # OpenCV's filters and codecs may round differently on another machine
    assert moments == pytest.approx(MOMENTS[name], rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_a_crop_that_is_not_contiguous_gives_the_same(name):
    crop = ramp(80, 90)[10:50, 20:60]
    a = MODELS[name].degrade(crop, np.random.default_rng(0))
    b = MODELS[name].degrade(np.ascontiguousarray(crop), np.random.default_rng(0))
    np.testing.assert_array_equal(a, b)


def test_only_blur_needs_a_margin():
    assert Degradation(RainModel()).margin == 0
    assert Degradation(NoiseModel(kind="camera")).margin == 0
    assert Degradation(BlurModel(size=(5.0, 24.5))).margin == 26
    assert Degradation(BlurModel(size=(0.0, 0.0))).margin == 0
    assert (
        Degradation(BlurModel(size=(5.0, 24.5), kind="exposure", defocus=(1.0, 3.0))).margin == 29
    )
    assert Degradation(BlurModel(size=(5.0, 24.5), kind="exposure", defocus_share=0.0)).margin == 26


def test_defaults_are_parsed():
    assert parse_model("rain") == RainModel()
    assert parse_model("noise", {}) == NoiseModel()
    assert parse_model("blur", None) == BlurModel()


def test_values_are_parsed():
    assert parse_model("rain", {"strength": [0.5, 2], "heavy": 1, "heavy_fields": 4}) == RainModel(
        strength=(0.5, 2.0), heavy=1.0, heavy_fields=(4, 4)
    )
    assert parse_model("noise", {"sigma": 25}) == NoiseModel(sigma=(25.0, 25.0))
    assert parse_model("noise", {"kind": "camera", "correlated": False}) == NoiseModel(
        kind="camera", correlated=False
    )
    assert parse_model("blur", {"size": (3, 9), "inertia": 1}) == BlurModel((3.0, 9.0), (1.0, 1.0))


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("rian", {}, "there is no degradation 'rian' - did you mean rain?"),
        ("xyz", {}, "use one of: rain, noise, blur"),
        ("rain", {"strenght": 1}, "rain: unknown key strenght; did you mean strength?"),
        ("rain", {"zzz": 1}, "known: strength, heavy, heavy_fields, turn, across, along"),
        ("rain", {"heavy": 1.5}, "rain: heavy must be from 0 to 1, got 1.5"),
        ("rain", {"strength": -0.1}, "strength must be from 0 to 4, got -0.1"),
        ("rain", {"strength": [1, 0.5]}, "strength must have its lower end first, got [1, 0.5]"),
        ("rain", {"strength": [1, 2, 3]}, "strength must have at most 2 items"),
        ("rain", {"strength": "much"}, "strength[0] must be a valid number, got 'much'"),
        ("rain", {"heavy": True}, "heavy must be a number, got True"),
        ("rain", {"heavy": None}, "heavy must be a valid number, got None"),
        ("noise", {"jpeg": 10**400}, "jpeg must be from 10 to 100, got a number of more than 64"),
        ("noise", {"sigma": [0, 10**400]}, "sigma[1] must be a valid number"),
        ("rain", {"heavy": float("nan")}, "heavy must be a finite number, got nan"),
        ("rain", {"heavy_fields": [2.5, 4]}, "heavy_fields[0] must be a valid integer"),
        ("rain", {"heavy_fields": float("inf")}, "must be a finite number"),
        ("rain", {"turn": 90}, "turn must be from 0 to 45, got 90"),
        ("noise", {"sigma": 256}, "noise: sigma must be from 0 to 255, got 256"),
        (
            "noise",
            {"sigma": [0, 0.2]},
            "levels of 8 bits (0 to 255), not a share of white, got [0,",
        ),
        ("noise", {"kind": "camra"}, "'either' or 'raw', got 'camra'"),
        ("noise", {"correlated": "maybe"}, "correlated must be a valid boolean"),
        ("noise", {"shot": 0}, "shot must be from 1e-06 to 1, got 0"),
        ("noise", {"shot": 0, "sigma": -1}, "to 255, got -1; shot must be from 1e-06"),
        ("blur", {"size": 500}, "size must be from 0 to 101, got 500"),
        ("blur", {"inertia": 0}, "inertia must be from 0.01 to 10, got 0"),
        ("blur", {"kind": "shake"}, "kind must be 'kernel' or 'exposure', got 'shake'"),
        ("blur", {"jpeg": 5}, "jpeg must be from 10 to 100, got 5"),
    ],
)
def test_invalid_options_are_named(kind, options, says):
    with pytest.raises(UsageError) as error:
        parse_model(kind, options)
    assert says in f"{error.value} - {error.value.hint}"


@pytest.mark.slow
def test_importing_loads_neither_torch_nor_opencv():
    code = (
        "import sys, c2fdft_cli.data.synthesis.degrade; "
        "sys.exit(bool({'cv2', 'torch'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


ALL_KINDS = NoiseModel(kind="either", camera_share=0.6, raw_share=0.5, unclipped_share=0.5)
ALL_BLUR = BlurModel(kind="exposure", objects=0.5, defocus_share=0.5, burst=0.5)
ALL_RAIN = RainModel(heavy=0.5, layers=(0, 2), veil_share=0.5, camera_share=0.4)
OTHER_VALUES = {
    "sigma": (60.0, 60.0),
    "unclipped_share": 0.9,
    "shot": (0.1, 0.1),
    "correlated": False,
    "camera_share": 0.9,
    "raw_share": 0.9,
    "luma": (3.0, 3.0),
    "chroma": (7.0, 7.0),
    "sharpen": (3.0, 3.0),
    "tone": (0.0, 0.0),
    "jpeg": (10, 12),
    "size": (9.0, 40.0),
    "inertia": (2.0, 4.0),
    "noise": (20.0, 30.0),
    "objects": 1.0,
    "defocus": (5.0, 9.0),
    "defocus_share": 0.9,
    "gamma": (1.0, 1.0),
    "burst": 0.9,
    "jpeg_share": 0.9,
    "strength": (3.0, 4.0),
    "heavy": 0.9,
    "heavy_fields": (20, 24),
    "turn": 3.0,
    "across": (3.0, 4.0),
    "along": (0.3, 0.4),
    "lean": 3.0,
    "cover": (0.8, 0.9),
    "layers": (4, 5),
    "veil": (0.8, 0.9),
    "veil_share": 0.9,
}


WITH_OTHER_OPTIONS = [
    *(NoiseModel(kind=kind, unclipped_share=0.5) for kind in ("gaussian", "camera", "raw")),
    *(ALL_KINDS, replace(ALL_KINDS, raw_share=0.0), replace(ALL_KINDS, raw_share=1.0)),
    *(replace(ALL_KINDS, camera_share=share) for share in (0.0, 1.0)),
    *(BlurModel(), ALL_BLUR, replace(ALL_BLUR, defocus_share=0.0, jpeg_share=0.0)),
    *(ALL_RAIN, replace(ALL_RAIN, heavy=0.0), replace(ALL_RAIN, heavy=1.0)),
    *(replace(ALL_RAIN, veil_share=0.0), replace(ALL_RAIN, camera_share=1.0)),
    *(replace(ALL_RAIN, heavy=heavy, camera_share=0.0) for heavy in (0.0, 1.0)),
]


@pytest.mark.parametrize(
    ("model", "with_bank"),
    [
        *((model, False) for model in WITH_OTHER_OPTIONS),
        *((model, True) for model in WITH_OTHER_OPTIONS if model.uses_streaks),
    ],
)
def test_an_option_in_use_changes_pictures_and_any_other_changes_none(model, with_bank, bank):
    """Of 24 patches, each made by the same generator before and after an option changed."""
    streaks = bank if with_bank else None
    in_use, gt = model.options_in_use(bank=with_bank), ramp(16, 20)

    def patch(one, seed):
        return one.degrade_patch(gt, np.random.default_rng(seed), streaks)

    before = [patch(model, seed) for seed in range(24)]
    for name in {field.name for field in fields(model)} - {"kind"}:
        other = replace(model, **{name: OTHER_VALUES[name]})
        same = all(np.array_equal(one, patch(other, seed)) for seed, one in enumerate(before))
        assert same != (name in in_use), name
    assert {"kind"} <= in_use or not hasattr(model, "kind")


def test_options_without_effect_are_named_and_only_those_that_were_set():
    model = NoiseModel(kind="raw")
    assert without_effect(model, ("kind", "shot"), bank=False) == ()
    (one,) = without_effect(model, ("shot", "sigma"), bank=False)
    assert one.startswith("sigma has no effect with the other settings: docs/synthesis.md")
    (two,) = without_effect(RainModel(), ("turn", "heavy", "across"), bank=False)
    assert two.startswith("across, turn have no effect")
    assert without_effect(RainModel(), ("turn", "across"), bank=True) == ()
