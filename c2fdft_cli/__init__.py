"""C2F-DFT: coarse-to-fine diffusion Transformer for image restoration, as a command-line toolkit."""

__version__ = "0.1.0"
