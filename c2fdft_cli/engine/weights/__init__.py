"""Weights on disk: checkpoints, packaged weights, conversion."""
