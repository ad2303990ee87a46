"""A block in strips as few Triton kernels, for inference on CUDA."""
