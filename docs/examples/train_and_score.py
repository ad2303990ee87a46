"""Train on pairs of your own, both stages, and score the result beside packaged weights."""

from pathlib import Path

import numpy as np
from PIL import Image

import c2fdft_cli as c2fdft

c2fdft.prepare("pairs", "shards/pairs")
coarse = c2fdft.train("coarse", recipe="mine.yaml", data="shards/pairs", out="runs/coarse")
c2fdft.sweep_steps(coarse.checkpoint, steps="1-4")
fine = c2fdft.train("fine", init=coarse.checkpoint, out="runs/fine")

names = sorted(path.name for path in Path("pairs/val/rainy").iterdir())
rainy, clean = (
    [np.asarray(Image.open(f"pairs/val/{side}/{name}")) for name in names]
    for side in ("rainy", "clean")
)
for weights in (fine.checkpoint, "derain"):
    restored = c2fdft.load(weights)(rainy, names)
    result = c2fdft.evaluate(restored, clean, protocol="derain")
    print(f"{weights}: {result.psnr:.2f} dB, SSIM {result.ssim:.4f}")
