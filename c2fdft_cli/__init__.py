"""C2F-DFT, a coarse-to-fine diffusion Transformer for image restoration, as a toolkit."""

__version__ = "0.1.0"
