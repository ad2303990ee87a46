"""A TIFF's LZW streams, of which some would crash their decoder."""

from __future__ import annotations

import time

import imagecodecs
import numpy as np
import pytest

from c2fdft_cli.data.images import lzw

CRASHED = bytes.fromhex("807f20503824160d0784426150b864361d0f8844625138a456")
"""A stream for which the decoder of imagecodecs 2026.3 read out of bounds."""


def values(count, top):
    return np.random.default_rng(count).integers(0, top, count, np.uint8, endpoint=True).tobytes()


def first_undefined(segment):
    """Decode code by code: (bytes before the first undefined code, whether there is one)."""
    lengths, width, at, last, made = [1] * 258, 9, 0, 0, 0
    while at + width <= 8 * len(segment):
        word = int.from_bytes(segment[at >> 3 : (at >> 3) + 3].ljust(3, b"\0"), "big")
        code = word >> (24 - width - (at & 7)) & ((1 << width) - 1)
        at += width
        if code == 257:
            break
        if code == 256:
            del lengths[258:]
            width, last = 9, 0
            continue
        if code > len(lengths) - (not last):
            return made, True
        if last and len(lengths) < 4096:
            lengths.append(last + 1)
        last = lengths[code]
        made += last
        width = min(12, max(9, (len(lengths) + 1).bit_length()))
    return made, False


@pytest.mark.parametrize("top", [0, 1, 19, 255])
@pytest.mark.parametrize("count", [1, 2, 300, 5000, 100_000])
def test_streams_of_an_encoder_are_decoded(count, top):
    stream = imagecodecs.lzw_encode(values(count, top))
    assert lzw.decode(stream, out=count) == values(count, top)
    for cut in (len(stream) - 1, len(stream) // 2):
        made = lzw.decode(stream[:cut], out=1 << 20)
        assert values(count, top).startswith(made)


def test_an_undefined_code_counts_only_before_the_last_byte():
    data = values(3000, 19)
    stream = imagecodecs.lzw_encode(data + bytes(99))[:-3] + b"\xff" * 6
    made, undefined = first_undefined(stream)
    assert undefined
    assert made >= 3000
    assert lzw.decode(stream, out=3000) == data
    with pytest.raises(ValueError, match="LZW codes are damaged"):
        lzw.decode(stream, out=4000)


def test_the_stream_that_crashed_the_decoder_is_refused():
    with pytest.raises(ValueError, match="LZW codes are damaged"):
        lzw.decode(CRASHED, out=2304)


def test_bytes_are_decoded_up_to_the_first_undefined_code():
    stream = imagecodecs.lzw_encode(values(3000, 60))
    places = np.random.default_rng(0).integers(0, 8 * len(stream), 300)
    verdicts = []
    for place in places:
        damaged = bytearray(stream)
        damaged[place >> 3] ^= 1 << (place & 7)
        made, undefined = first_undefined(bytes(damaged))
        verdicts.append(undefined)
        if made:
            assert len(lzw.decode(bytes(damaged), out=made)) == made
        if undefined:
            with pytest.raises(ValueError, match="LZW codes are damaged"):
                lzw.decode(bytes(damaged), out=made + 1)
    assert 0 < sum(verdicts) < len(verdicts)


def test_a_long_stream_with_a_wrong_end_is_checked_quickly():
    """Checking it code by code took 8 s."""
    data = values(4_000_000, 255)
    stream = imagecodecs.lzw_encode(data)[:-2] + b"\xff" * 8
    start = time.process_time()
    assert lzw.decode(stream, out=len(data) - 8) == data[:-8]
    assert time.process_time() - start < 2
