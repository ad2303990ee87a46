"""The type of 8-bit pictures."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]
"""uint8 [h, w, 3], RGB, or several pictures [n, h, w, 3]."""
