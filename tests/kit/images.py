"""Pictures by formula, as files of many kinds."""

from __future__ import annotations

import io

import numpy as np
import tifffile


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ramp(height=6, width=9, channels=3, dtype=np.uint16):
    y, x, c = np.mgrid[:height, :width, :channels]
    values = (y * 4099 + x * 17391 + c * 29009 + 7) % 65536
    return (values if dtype == np.uint16 else values >> 8).astype(dtype)


def tiff_bytes(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()
