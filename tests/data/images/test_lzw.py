"""Which LZW streams are safe to decode."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest

from c2fdft_cli.data.images.lzw import _all_defined, _defined_up_to, is_sound

CRASHED = bytes.fromhex("807f20503824160d0784426150b864361d0f8844625138a456")
"""Made the decoder of imagecodecs 2026.3 read memory that was not its own."""


def values(count, top):
    return np.random.default_rng(count).integers(0, top, count, np.uint8, endpoint=True).tobytes()


@pytest.mark.parametrize("top", [0, 1, 19, 255])
@pytest.mark.parametrize("count", [1, 2, 300, 5000, 100_000])
def test_what_an_encoder_writes_is_sound(count, top):
    stream = imagecodecs.lzw_encode(values(count, top))
    for cut in (len(stream), len(stream) - 1, len(stream) // 2):
        assert _all_defined(stream[:cut])
        assert _defined_up_to(stream[:cut], count)


def test_an_undefined_code_counts_only_before_the_last_byte():
    data = values(3000, 19)
    stream = imagecodecs.lzw_encode(data + bytes(99))[:-3] + b"\xff" * 6
    assert not _all_defined(stream)
    assert is_sound(stream, 3000)
    assert not is_sound(stream, 4000)
    assert imagecodecs.lzw_decode(stream, out=3000) == data


def test_the_stream_that_crashed_is_not_sound():
    assert not is_sound(CRASHED, 2304)


def test_both_ways_agree_on_damaged_streams():
    stream = imagecodecs.lzw_encode(values(3000, 60))
    places = np.random.default_rng(0).integers(0, 8 * len(stream), 300)
    verdicts = []
    for place in places:
        damaged = bytearray(stream)
        damaged[place >> 3] ^= 1 << (place & 7)
        verdicts.append(_all_defined(bytes(damaged)))
        assert verdicts[-1] == _defined_up_to(bytes(damaged), 1 << 40)
    assert 0 < sum(verdicts) < len(verdicts)
