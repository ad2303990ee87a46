"""NVIDIA GPUs: their capabilities, products on them, CUDA graphs, and copies to and from them."""
