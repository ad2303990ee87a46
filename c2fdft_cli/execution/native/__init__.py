"""Compiled kernels for the Transformer block on a CPU."""
