"""A block in strips as few Triton kernels, on CUDA; its norm also in training."""
