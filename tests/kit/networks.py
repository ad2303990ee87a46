"""Small networks that between them differ from `SMALL` in each field of a recipe's `Network`."""

from __future__ import annotations

from dataclasses import replace

from c2fdft_cli.recipe.schema import Network

SMALL = Network(dim=8, blocks=[1, 1, 1, 1])
NETWORKS = {
    "with_bias": SMALL,
    "bias_free": replace(SMALL, norm="bias_free"),
    "dual_pixel": replace(SMALL, dual_pixel=True, bias=True),
    "narrow": Network(dim=6, blocks=[2, 1, 1, 2], heads=[1, 1, 3, 2], ffn_factor=2.66, bias=True),
}
SECTION = 'CONTRIBUTING.md, "A new network option"'
