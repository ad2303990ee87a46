"""The sheet of pairs that a preview shows."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from c2fdft_cli.data.images.sheet import contact_sheet
from tests.kit import images

ramp = partial(images.ramp, dtype=np.uint8)


def test_contact_sheet_lays_pairs_in_rows():
    pairs = [(ramp(40, 80), ramp(80, 40)), (ramp(10, 10), ramp(10, 10)), (ramp(9, 9),) * 2]
    sheet = contact_sheet(pairs, columns=2, tile=20)
    assert sheet.shape == (2 * 24 + 4, 4 * 24 + 4, 3)
    assert sheet.dtype == np.uint8
    np.testing.assert_array_equal(sheet[9:19, 57:67], ramp(10, 10))
    assert (sheet[:4] == 64).all()
    assert (sheet[28:, 52:] == 64).all()


def test_contact_sheet_is_no_wider_than_its_pairs():
    assert contact_sheet([(ramp(8, 8), ramp(8, 8))], columns=9, tile=8).shape == (16, 28, 3)


def test_a_contact_sheet_of_a_very_narrow_image():
    assert contact_sheet([(ramp(400, 1), ramp(1, 400))], columns=1, tile=10).shape == (18, 32, 3)


@pytest.mark.parametrize(("count", "columns", "tile"), [(0, 1, 8), (1, 0, 8), (1, 1, 0)])
def test_a_contact_sheet_without_pairs_is_refused(count, columns, tile):
    with pytest.raises(ValueError, match="contact sheet"):
        contact_sheet([(ramp(8, 8), ramp(8, 8))] * count, columns, tile)
