"""Names of colour profiles, and what they do to colours."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from c2fdft_cli.data.images.profiles import in_srgb, profile_difference, profile_name
from tests.kit.images import EXCHANGED_PROFILE, SRGB_PROFILE


def test_a_picture_is_converted_by_its_profile() -> None:
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    for profile, expected in ((SRGB_PROFILE, (255, 0, 0)), (EXCHANGED_PROFILE, (0, 0, 255))):
        turned = in_srgb(red, profile)
        assert turned is not None
        assert np.allclose(turned.getpixel((0, 0)), expected, atol=2)


@pytest.mark.parametrize("profile", [b"", b"no profile", SRGB_PROFILE[:200], b"\0" * 200])
def test_a_damaged_profile_counts_as_srgb(profile: bytes) -> None:
    assert in_srgb(Image.new("RGB", (1, 1)), profile) is None
    assert profile_name(profile) == "a profile without a name"
    assert profile_difference(profile, None) == 0
    assert profile_difference(profile, SRGB_PROFILE) <= 1


def test_profiles_differ_by_their_colours_not_by_their_bytes() -> None:
    named = SRGB_PROFILE.replace("sRGB".encode("utf-16-be"), "rgbS".encode("utf-16-be"))
    assert named != SRGB_PROFILE
    assert (profile_name(SRGB_PROFILE)[:4], profile_name(named)[:4]) == ("sRGB", "rgbS")
    assert profile_name(None) == "no profile"
    assert profile_difference(named, SRGB_PROFILE) == 0
    assert profile_difference(None, SRGB_PROFILE) <= 1
    for other in (None, SRGB_PROFILE):
        assert profile_difference(EXCHANGED_PROFILE, other) > 250
        assert profile_difference(other, EXCHANGED_PROFILE) > 250
